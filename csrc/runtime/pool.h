// The runtime's threads: one pool for the process, lent to core for the length of a call.
#pragma once

#include <cstdint>

#include "../core/base.h"

namespace lrcn::runtime {

// At most this many of the pool's threads, the calling one among them. The pool serves one call at a time: a
// call that comes while another thread has it, or from within a body, runs on its own thread, and so does
// one of a single task. A body's exception is thrown to the caller when all threads are done.
Parallel threads(int64_t count);

}  // namespace lrcn::runtime
