// The runtime's threads: every task once, whoever calls, and what goes wrong comes back.
#include "../../csrc/runtime/pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

using namespace lrcn;
using runtime::threads;

namespace {

struct Range {
  int64_t begin, end;
  std::thread::id thread;
};

// The ranges that n tasks came in, in their order.
std::vector<Range> ranges(const Parallel& parallel, int64_t n, int64_t grain) {
  std::vector<Range> found(n);
  std::vector<std::atomic<int>> times(n);
  parallel(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++times[i];
    if (begin < end) found[begin] = {begin, end, std::this_thread::get_id()};
  });
  std::vector<Range> whole;
  for (const Range& range : found)
    if (range.end > range.begin) whole.push_back(range);
  for (const auto& count : times) CHECK(count == 1);
  return whole;
}

}  // namespace

TEST(pool_runs_every_task_once) {
  for (const int64_t count : {1, 2, 3, 8})
    for (const int64_t n : {0, 1, 2, 7, 64, 1000})
      for (const int64_t grain : {1, 5, 1000}) {
        const std::vector<Range> parts = ranges(threads(count), n, grain);
        const int64_t expected = std::min(count, (n + grain - 1) / grain);
        CHECK(static_cast<int64_t>(parts.size()) == expected);
        std::set<std::thread::id> used;
        for (const Range& part : parts) used.insert(part.thread);
        CHECK(used.size() == parts.size());  // no thread had two of them
        if (!parts.empty()) CHECK(parts[0].thread == std::this_thread::get_id());
      }
}

TEST(pool_gives_a_thread_the_same_range_again) {
  const std::vector<Range> first = ranges(threads(3), 100, 1);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const std::vector<Range> again = ranges(threads(3), 100, 1);
    CHECK(again.size() == 3);
    for (size_t i = 0; i < again.size(); ++i)
      CHECK(again[i].begin == first[i].begin && again[i].thread == first[i].thread);
  }
}

TEST(pool_wakes_threads_that_sleep) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::this_thread::sleep_for(std::chrono::microseconds(repeat * 50));
    CHECK(ranges(threads(2), 10, 1).size() == 2);
  }
}

TEST(pool_throws_what_a_body_throws) {
  for (const int64_t bad : {0, 50, 99}) {
    std::atomic<int> done{0};
    std::string message;
    try {
      threads(3)(100, 1, [&](int64_t begin, int64_t end) {
        if (begin <= bad && bad < end) fail("task ", bad);
        ++done;
      });
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message == "task " + std::to_string(bad));
    CHECK(done == 2);
  }
  CHECK(ranges(threads(3), 100, 1).size() == 3);  // the pool is free again
}

TEST(pool_runs_a_call_from_within_on_its_own_thread) {
  std::atomic<int> inner{0};
  threads(2)(2, 1, [&](int64_t, int64_t) {
    const std::vector<Range> parts = ranges(threads(2), 10, 1);
    inner += parts.size() == 1 && parts[0].thread == std::this_thread::get_id();
  });
  CHECK(inner == 2);
}

TEST(pool_is_shared_by_callers) {
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 500; ++repeat)
        threads(3)(10, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) sum += i;
        });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(sum == 4 * 500 * 45);
}
