#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace lrcn::runtime {
namespace {

// How long a thread that has nothing to do stays awake: longer than it is from one loop of a step or a search
// to the next, each of which would wait for it to wake up.
constexpr std::chrono::microseconds kAwake{200};

// Whether done() came true before kAwake was over.
template <typename Done>
bool spin(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kAwake;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
#if defined(__SSE2__)
      _mm_pause();
#endif
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

struct Job {
  int64_t n, parts;
  Parallel::Body body;
  void* context;

  // Of equal size but for one: part i is the same range at every call, so a thread finds its slice of a
  // weight in its own cache.
  void run(int64_t part) const { body(context, n * part / parts, n * (part + 1) / parts); }
};

class alignas(64) Worker {
 public:
  // Wakes the thread to run a part of the job, which outlives that.
  void start(const Job& job, int64_t part) {
    job_ = &job, part_ = part;
    turn_.fetch_add(1);
    if (!sleeps_.load()) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_one();
  }

  // Waits until it is done; what the body threw.
  std::exception_ptr finish() {
    const uint64_t turn = turn_.load();
    const auto done = [&] { return done_.load(std::memory_order_acquire) == turn; };
    while (!spin(done)) std::this_thread::yield();
    return std::move(error_);
  }

  [[noreturn]] void work() {
    for (uint64_t turn = 1;; ++turn) {
      const auto started = [&] { return turn_.load() >= turn; };
      if (!spin(started)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeps_.store(true);  // before the next look at turn_: start() looks in the other order
        wake_.wait(lock, started);
        sleeps_.store(false);
      }
      try {
        job_->run(part_);
      } catch (...) {
        error_ = std::current_exception();
      }
      done_.store(turn, std::memory_order_release);
    }
  }

 private:
  std::atomic<uint64_t> turn_{0}, done_{0};
  const Job* job_ = nullptr;
  int64_t part_ = 0;
  std::exception_ptr error_;
  std::atomic<bool> sleeps_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

class Pool {
 public:
  // Whether the pool was free.
  bool run(const Job& job) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    std::exception_ptr error;
    int64_t started = 0;
    try {
      for (; started < job.parts - 1; ++started) {
        if (started == static_cast<int64_t>(workers_.size())) add();
        workers_[started].start(job, started + 1);
      }
      job.run(0);
    } catch (...) {
      error = std::current_exception();
    }
    for (int64_t i = 0; i < started; ++i)
      if (const std::exception_ptr other = workers_[i].finish(); error == nullptr) error = other;
    busy_.store(false, std::memory_order_release);
    if (error != nullptr) std::rethrow_exception(error);
    return true;
  }

 private:
  void add() {
    Worker& worker = workers_.emplace_back();
    try {
      std::thread([&worker] { worker.work(); }).detach();
    } catch (...) {
      workers_.pop_back();
      throw;
    }
  }

  std::atomic<bool> busy_{false};
  std::deque<Worker> workers_;  // which stay where they are
};

std::atomic<Pool*> current{nullptr};

// Never deleted: its threads run until the process ends. A fork takes none of them along, and what the others
// held it leaves locked, so the child starts with another one.
Pool& pool() {
  Pool* found = current.load();
  if (found == nullptr) {
    Pool* fresh = new Pool;
    if (current.compare_exchange_strong(found, fresh))
      found = fresh;
    else
      delete fresh;
  }
  return *found;
}

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int forgets_at_fork = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
#endif

}  // namespace

Parallel threads(int64_t count) {
  if (count == 1) return {};
  return Parallel(
      +[](int64_t count, int64_t n, int64_t grain, Parallel::Body body, void* context) {
        const Job job{n, std::min(count, (n + grain - 1) / grain), body, context};
        if (job.parts <= 1 || !pool().run(job)) body(context, 0, n);
      },
      count);
}

}  // namespace lrcn::runtime
