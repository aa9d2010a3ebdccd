// What a call borrows, and the thread keeps.
#include "../../csrc/core/memory.h"

#include <utility>

#include "check.h"

using namespace lrcn;

TEST(scratch_is_kept_for_later_calls) {
  if (kKeptBytes == 0) return;
  const char* first = allocate_scratch(1000).get();  // given back at once
  const Scratch again = allocate_scratch(500), other = allocate_scratch(500);
  CHECK(again.get() == first);
  CHECK(other.get() != first);
}

TEST(scratch_takes_the_smallest_that_fits) {
  if (kKeptBytes == 0) return;
  char *small, *large;
  {
    const Scratch a = allocate_scratch(3 << 20), b = allocate_scratch(9 << 20);
    small = a.get(), large = b.get();
  }
  const Scratch a = allocate_scratch(2 << 20), b = allocate_scratch(2 << 20);
  CHECK(a.get() == small);
  CHECK(b.get() == large);
}

TEST(scratch_keeps_no_more_than_it_says) {
  const auto touch = [](int64_t bytes) {  // what was in its last byte
    const Scratch scratch = allocate_scratch(bytes);
    return std::exchange(scratch.get()[bytes - 1], 'x');
  };
  const int64_t half = kKeptBytes / 2 + 1;
  touch(half);
  CHECK(kKeptBytes == 0 || touch(half) == 'x');
  touch(kKeptBytes + 1);
  CHECK(touch(kKeptBytes + 1) != 'x');
  {
    const Scratch a = allocate_scratch(half), b = allocate_scratch(half);
    a.get()[half - 1] = b.get()[half - 1] = 0;
  }
  const Scratch first = allocate_scratch(half);
  CHECK(touch(half) != 'x');
}
