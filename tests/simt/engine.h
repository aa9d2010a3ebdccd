// The emulator's core: CUDA threads as fibers on one CPU thread, a seeded scheduler, and the
// happens-before bookkeeping behind the race detector (memory.h).
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <stdexcept>
#include <string>
#include <typeindex>
#include <vector>

#include "../../csrc/cuda/launch.h"
#include "fiber.h"
#include "memory.h"

namespace lrcn::cuda {
struct Mbarrier;
}

namespace simt {

enum class Policy { round_robin, random, starve };
inline const char* const kPolicyNames[] = {"round_robin", "random", "starve"};

struct Options {
  Policy policy = Policy::random;
  uint64_t seed = 1;
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// splitmix64: any seed is a good one.
struct Rng {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  unsigned below(size_t n) { return static_cast<unsigned>(next() % n); }
};

// A vector clock. all[i] is the last moment of component i that is ordered before the owner; reads[i] the
// last one whose *reads* are. reads runs ahead of all where only that is promised: by an arrival at a peer's
// mbarrier, and by store_async, whose value cannot arrive before the reads it was computed from are done.
//
// Components: one per resident thread, then, in cluster launches, one more for its asynchronous stores.
struct Clock {
  std::vector<int> all, reads;
  bool empty() const { return all.empty(); }
  void join(const Clock& other);
  void join_reads(const std::vector<int>& other);
};

struct Wait {  // what a thread is waiting for: a literal, the object, the place in the kernel
  const char* what = "";
  const void* object = nullptr;
  const void* pc = nullptr;
};

struct Block;

struct Copy {  // a cp.async
  void* to;
  const void* from;
  int group;
  bool landed;
};

struct Fiber {
  Context context;
  Block* block;
  unsigned thread;
  unsigned id;  // its component of every clock
  Clock clock;
  int async_time = 0;  // of its second component
  bool victim = false;
  Wait wait;
  unsigned polls = 0;        // fruitless rounds of a polling loop...
  uint64_t polled_at = ~0u;  // ...since this moment of Engine::progress
  const void* polled = nullptr;
  unsigned bare_polls = 0;  // loads of `polled` without a pause()
  std::vector<Copy> copies;
  int copy_group = 0;

  int now() const { return clock.all[id]; }
  void tick() { clock.reads[id] = ++clock.all[id]; }  // after a release: what follows was not released
};

struct Barrier {
  unsigned expected = 0, arrived = 0;
  Clock clock;
  std::vector<Fiber*> waiting;
};

struct MbarrierState {
  unsigned count, pending, phase = 0;
  long bytes = 0;        // still to come in this phase
  Clock arriving, done;  // released in this phase; in all phases before
  std::vector<Fiber*> waiting;
};

using Combine = void (*)(void** lane_arguments, unsigned mask);
struct WarpOp {  // lanes gathering for a shuffle, an mma or a warp barrier
  const char* what;
  unsigned warp, mask, arrived = 0;
  Fiber* lane[32];
  void* argument[32];
  Clock clock;
};

struct Block {
  unsigned x = 0, y = 0, slot = 0, live = 0;
  unsigned char* arena = nullptr;  // its shared memory
  Barrier barrier;
  Barrier* cluster_barrier = nullptr;
  std::vector<WarpOp> warp_ops;
  uint32_t returned[32] = {};  // lanes of each warp
  bool has_returned(unsigned thread) const { return returned[thread / 32] >> thread % 32 & 1; }
  std::map<const void*, MbarrierState> mbarriers;
};

struct Flight {  // a store_async on its way
  uint32_t* to;
  uint32_t value;
  lrcn::cuda::Mbarrier* barrier;
  unsigned component;
  int time;
  std::vector<int> reads;
  const void* pc;
};

class Engine {
 public:
  Engine(const Launch& launch, const Options& options);
  ~Engine();
  void run();

  // What follows is called on the stack of the current thread.
  void end_thread();
  [[noreturn]] void fail(const std::string& message, const void* pc = nullptr);
  [[noreturn]] void abandon(const std::string& report);  // ends the launch
  void point() {                                         // anywhere another thread may cut in
    if (--budget_ < 0) yield();
  }
  void yield();
  void block_on(const Wait& wait);  // returns when someone calls wake
  void wake(Fiber* fiber);
  void pause(const void* pc);
  void progress();  // something a polling loop could see has changed
  void arrive(Barrier& barrier, unsigned expected, const Wait& wait);
  void collective(const char* what, unsigned mask, void* argument, Combine combine, bool orders,
                  const void* pc);
  void send(Flight flight);
  MbarrierState& mbarrier(const void* address, const void* pc);
  void mbarrier_update(MbarrierState& state, unsigned arrivals, long bytes, const void* pc);
  void* shared_object(const std::type_info& type, size_t bytes, size_t alignment);

  Block& block_at(const void* shared_address);
  bool is_async(int component) const { return component >= static_cast<int>(fibers_.size()); }
  std::string describe(unsigned component) const;
  std::string source(const void* pc) const;

  const Launch launch;
  Rng rng;
  Fiber* self = nullptr;
  Memory memory;
  Barrier grid_barrier;
  std::map<const void*, Clock> released;  // what the value now at an address released
  std::vector<Block> blocks;              // resident ones
  uint64_t switches = 0;
  unsigned components = 0;

 private:
  void start(unsigned place);
  void check_redzones(const Block& block);
  Fiber* pick();
  void switch_to(Fiber* next);
  void deliver();
  std::string stall_report() const;

  const Options options_;
  std::vector<Fiber> fibers_;
  std::vector<Barrier> cluster_barriers_;
  std::vector<unsigned> waiting_units_;  // clusters (or single blocks) that have not started
  std::vector<unsigned> finished_;       // places for them
  std::vector<unsigned> unit_live_;
  std::deque<Fiber*> ready_, starved_, pollers_;
  std::deque<Flight> flights_;
  std::map<std::type_index, size_t> shared_offsets_;
  size_t shared_end_;
  uint64_t progress_ = 0;
  int budget_ = 0, interval_ = 0;
  bool eager_flights_ = false;
  Context main_;
  std::string failure_;
};

extern Engine* engine;  // the launch in progress
extern Options options;
extern uint64_t last_switches;
using Stacks = Slots<60 << 10>;  // fibers'
extern Stacks stacks;

}  // namespace simt
