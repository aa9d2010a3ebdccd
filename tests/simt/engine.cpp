#include "engine.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace simt {

Engine* engine = nullptr;
Options options;
uint64_t last_switches = 0;

Stacks stacks;

namespace {

constexpr unsigned kMaxResident = 4;  // units of an ordinary launch that run side by side
constexpr unsigned kMaxPolls = 64;    // rounds a polling loop gets while nothing changes anywhere
constexpr size_t kStaticLimit = 48 << 10, kSharedLimit = 227 << 10;  // sm_90, per block

void max_into(std::vector<int>& into, const std::vector<int>& from) {
  int* a = into.data();
  const int* b = from.data();
  for (size_t i = 0, n = into.size(); i < n; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
}

// Without the namespaces that all kernels share.
std::string plain_name(std::string name) {
  for (const char* part : {"lrcn::cuda::", "(anonymous namespace)::", "void "})
    for (size_t at; (at = name.find(part)) != std::string::npos;) name.erase(at, std::strlen(part));
  return name.substr(0, name.find('('));
}

void thread_entry();

}  // namespace

void Clock::join(const Clock& other) {
  if (other.empty()) return;
  if (empty()) {
    *this = other;
    return;
  }
  max_into(all, other.all);
  max_into(reads, other.reads);
}

void Clock::join_reads(const std::vector<int>& other) {
  if (empty()) {
    all.assign(other.size(), 0);
    reads = all;
  }
  max_into(reads, other);
}

// --- a launch ----------------------------------------------------------------------------------

Engine::Engine(const Launch& the_launch, const Options& the_options)
    : launch(the_launch), rng{the_options.seed}, options_(the_options) {
  const unsigned units = launch.grid.x / launch.cluster * launch.grid.y;
  if (launch.block == 0 || launch.block % 32 != 0 || launch.block > 1024 || units == 0 ||
      launch.grid.x % launch.cluster != 0 || launch.cluster > 16)
    throw Failure(
        "launch: block must be 32..1024 in steps of 32, the grid not empty and cluster <= 16 a "
        "divisor of its x");
  if (launch.dynamic_shared > kSharedLimit) throw Failure("launch: too much dynamic shared memory");

  const unsigned resident = launch.grid.cooperative ? units : 1 + rng.below(std::min(units, kMaxResident));
  const unsigned slots = resident * launch.cluster, threads = slots * launch.block;
  components = threads * (launch.cluster > 1 ? 2 : 1);
  if (components >= UINT16_MAX) throw Failure("launch: too many resident threads for the emulator");

  // Which threads starve, how often threads are cut off, how late asynchronous stores land: all from the
  // seed.
  const bool orderly = options_.policy == Policy::round_robin;
  const int intervals[] = {0, 4, 32, 256};
  interval_ = orderly ? 0 : intervals[rng.below(4)];
  eager_flights_ = orderly || rng.below(2) == 0;
  const unsigned victim_slot = rng.below(slots), victim_warp = rng.below(launch.block / 32);
  const bool whole_block = slots > 1 && rng.below(2) == 0;

  stacks.reserve(threads);
  std::vector<Region> regions = buffers;
  const auto arguments = reinterpret_cast<uintptr_t>(launch.arguments);
  regions.push_back({arguments, arguments + launch.argument_bytes, "kernel arguments"});
  memory.open(std::move(regions), slots);
  shared_end_ = 2 * Memory::kRedzone;
  if (launch.dynamic_shared > 0) memory.add_shared({shared_end_, launch.dynamic_shared, "dynamic"});
  shared_end_ += launch.dynamic_shared + Memory::kRedzone;

  blocks.resize(slots);
  cluster_barriers_.resize(resident);
  unit_live_.resize(resident);
  fibers_.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    fibers_[i].id = i;
    fibers_[i].clock.all.assign(components, 0);
    const unsigned slot = i / launch.block, warp = i % launch.block / 32;
    fibers_[i].victim =
        options_.policy == Policy::starve && slot == victim_slot && (whole_block || warp == victim_warp);
  }
  for (unsigned unit = units; unit-- > 0;) waiting_units_.push_back(unit);
  if (!orderly)
    for (unsigned i = units; i > 1; --i) std::swap(waiting_units_[i - 1], waiting_units_[rng.below(i)]);
  for (unsigned i = 0; i < resident; ++i) finished_.push_back(i);
}

Engine::~Engine() = default;

// Puts the next waiting unit into a free place.
void Engine::start(unsigned place) {
  const unsigned unit = waiting_units_.back(), row = launch.grid.x / launch.cluster;
  waiting_units_.pop_back();
  unit_live_[place] = launch.cluster * launch.block;
  cluster_barriers_[place] = {};
  for (unsigned rank = 0; rank < launch.cluster; ++rank) {
    const unsigned slot = place * launch.cluster + rank;
    Block& block = blocks[slot];
    block = {};
    block.x = unit % row * launch.cluster + rank;
    block.y = unit / row;
    block.slot = slot;
    block.live = launch.block;
    block.arena = arenas.at(slot);
    block.cluster_barrier = &cluster_barriers_[place];
    memory.start_block(slot, shared_end_ + Memory::kRedzone);
    for (unsigned t = 0; t < launch.block; ++t) {
      Fiber& fiber = fibers_[slot * launch.block + t];
      const int time = fiber.now();  // a component's time goes on from block to block
      fiber.block = &block;
      fiber.thread = t;
      fiber.wait = {};
      fiber.copies.clear();
      fiber.clock.all.assign(components, 0);
      fiber.clock.all[fiber.id] = time + 1;
      fiber.clock.reads = fiber.clock.all;
      start_context(fiber.context, stacks.at(fiber.id), Stacks::kStride - Stacks::kGuard, thread_entry);
      wake(&fiber);
    }
  }
}

void Engine::run() {
  for (;;) {
    for (; !finished_.empty() && !waiting_units_.empty(); finished_.pop_back()) start(finished_.back());
    if (finished_.size() == unit_live_.size()) break;
    try {
      Fiber* next = pick();
      if (next == nullptr) abandon(stall_report());
      switch_to(next);  // back when a thread returns or fails
    } catch (const Failure& failure) {
      failure_ = failure.what();
    }
    if (failure_.empty()) continue;
    std::ostringstream text;
    text << failure_ << "\n  kernel " << source(launch.kernel) << ", grid " << launch.grid.x << " x "
         << launch.grid.y << ", block " << launch.block << ", cluster " << launch.cluster << ", policy "
         << kPolicyNames[static_cast<int>(options_.policy)] << ", seed " << options_.seed;
    throw Failure(text.str());
  }
}

// The current thread has returned from the kernel.
void Engine::end_thread() {
  Fiber& fiber = *self;
  Block& block = *fiber.block;
  const auto nobody_waits = [&](const Barrier& barrier, const char* what) {
    if (barrier.arrived > 0)
      fail("a thread returned while " + std::to_string(barrier.arrived) + " wait for it in " + what);
  };
  nobody_waits(block.barrier, "sync_block");
  nobody_waits(*block.cluster_barrier, "sync_cluster");
  nobody_waits(grid_barrier, "sync_grid");
  for (const WarpOp& op : block.warp_ops)
    if (op.warp == fiber.thread / 32 && op.mask >> fiber.thread % 32 & 1)
      fail(std::string("a lane returned while others of its mask wait for it in ") + op.what);

  block.returned[fiber.thread / 32] |= 1u << fiber.thread % 32;
  progress();
  if (--block.live == 0) {
    check_redzones(block);
    for (const Flight& flight : flights_)
      if (&block_at(flight.to) == &block)
        fail("a block returned while a store_async is on its way to it", flight.pc);
  }
  const unsigned place = block.slot / launch.cluster;
  if (--unit_live_[place] == 0) finished_.push_back(place);
  self = nullptr;
  switch_context(fiber.context, main_);
}

// For builds without the instrumentation, which sees a stray write at once.
void Engine::check_redzones(const Block& block) {
  size_t from = 0;
  auto objects = memory.objects();
  objects.push_back({shared_end_ + Memory::kRedzone, 0, "the last object"});
  for (const Object& object : objects) {
    for (size_t i = from; i < object.offset; ++i)
      if (block.arena[i] != 0xff)
        fail("out of bounds: something wrote before " + object.name + " in shared memory");
    from = object.offset + object.bytes;
  }
}

// --- scheduling ----------------------------------------------------------------------------------

Fiber* Engine::pick() {
  const auto take = [&](std::deque<Fiber*>& queue, bool in_turn) {
    if (!in_turn) std::swap(queue.front(), queue[rng.below(queue.size())]);
    Fiber* fiber = queue.front();
    queue.pop_front();
    return fiber;
  };
  const bool in_turn = options_.policy == Policy::round_robin;
  for (;;) {
    if (!flights_.empty() && eager_flights_ && (in_turn || rng.below(4) == 0)) deliver();
    if (!ready_.empty()) return take(ready_, in_turn);
    if (!starved_.empty()) return take(starved_, in_turn);
    if (flights_.empty()) break;
    deliver();
  }
  // Only polling loops are left, and nothing they look at has changed, unless by a plain store: let each go
  // round a few more times, the least tried first.
  if (pollers_.empty() || pollers_.front()->polls >= kMaxPolls) return nullptr;
  return take(pollers_, true);
}

void Engine::switch_to(Fiber* next) {
  budget_ = interval_ == 0 ? INT_MAX : 1 + static_cast<int>(rng.below(2 * interval_));
  if (next == self) return;
  ++switches;
  Context& from = self == nullptr ? main_ : self->context;
  self = next;
  switch_context(from, next->context);
}

void Engine::wake(Fiber* fiber) {
  fiber->wait = {};
  (fiber->victim ? starved_ : ready_).push_back(fiber);
}

void Engine::yield() {
  wake(self);
  switch_to(pick());
}

void Engine::block_on(const Wait& wait) {
  self->wait = wait;
  Fiber* next = pick();
  if (next == nullptr) abandon(stall_report());
  switch_to(next);
}

void Engine::pause(const void* pc) {
  Fiber& fiber = *self;
  fiber.bare_polls = 0;
  if (fiber.polled_at != progress_) {
    fiber.polled_at = progress_;
    fiber.polls = 0;
    return yield();
  }
  ++fiber.polls;
  pollers_.push_back(self);
  block_on({"pause", fiber.polled, pc});
  fiber.wait = {};
}

void Engine::progress() {
  ++progress_;
  for (Fiber* fiber : pollers_) wake(fiber);
  pollers_.clear();
}

void Engine::fail(const std::string& message, const void* pc) {
  std::string text = message;
  if (pc != nullptr) text += "\n  at " + source(pc);
  if (self != nullptr) text += "\n  in " + describe(self->id);
  abandon(text);
}

void Engine::abandon(const std::string& report) {
  if (self == nullptr) throw Failure(report);
  failure_ = report;
  Fiber& fiber = *self;
  self = nullptr;
  switch_context(fiber.context, main_);
  __builtin_unreachable();
}

// --- meeting points ------------------------------------------------------------------------------

void Engine::arrive(Barrier& barrier, unsigned expected, const Wait& wait) {
  point();
  barrier.clock.join(self->clock);
  if (++barrier.arrived < expected) {
    barrier.waiting.push_back(self);
    return block_on(wait);
  }
  const Barrier complete = std::move(barrier);
  barrier = {};
  for (Fiber* fiber : complete.waiting) {
    fiber->clock = complete.clock;
    fiber->tick();
    wake(fiber);
  }
  self->clock = complete.clock;
  self->tick();
  progress();
  yield();
}

void Engine::collective(const char* what, unsigned mask, void* argument, Combine combine, bool orders,
                        const void* pc) {
  point();
  const unsigned warp = self->thread / 32, lane = self->thread % 32;
  auto& ops = self->block->warp_ops;
  if (!(mask >> lane & 1)) fail(std::string(what) + ": the lane is not in its own mask", pc);
  if (const uint32_t gone = mask & self->block->returned[warp])
    fail(std::string(what) + ": lane " + std::to_string(__builtin_ctz(gone)) + " of the mask has returned",
         pc);
  auto op =
      std::find_if(ops.begin(), ops.end(), [&](const WarpOp& o) { return o.warp == warp && o.mask == mask; });
  if (op == ops.end()) op = ops.insert(op, WarpOp{what, warp, mask, 0, {}, {}, {}});
  if (op->what != what && std::strcmp(op->what, what) != 0)
    fail(std::string("lanes of one mask disagree: some in ") + op->what + ", this one in " + what, pc);
  op->lane[lane] = self;
  op->argument[lane] = argument;
  if (orders) op->clock.join(self->clock);
  op->arrived |= 1u << lane;
  if (op->arrived != mask) return block_on({what, nullptr, pc});

  WarpOp complete = std::move(*op);
  ops.erase(op);
  if (combine != nullptr) combine(complete.argument, mask);
  int now[32] = {};
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) now[i] = complete.lane[i]->now();
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    Clock& clock = complete.lane[i]->clock;
    if (orders) {
      clock = complete.clock;
    } else {  // what a lane computes from now on depends on what the others have read
      int* const reads = clock.reads.data() + (self->id - lane);
      for (unsigned j = 0; j < 32; ++j) reads[j] = reads[j] > now[j] ? reads[j] : now[j];
    }
  }
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    complete.lane[i]->tick();
    if (complete.lane[i] != self) wake(complete.lane[i]);
  }
  yield();
}

// --- mbarriers and stores in flight ----------------------------------------------------------------

MbarrierState& Engine::mbarrier(const void* address, const void* pc) {
  if (!memory.in_shared(address)) fail("an mbarrier must lie in shared memory", pc);
  Block& block = block_at(address);
  memory.access(address, 8, kRead | kAtomic, pc);
  const auto found = block.mbarriers.find(address);
  if (found == block.mbarriers.end()) fail("an mbarrier was used before mbarrier_init", pc);
  return found->second;
}

void Engine::mbarrier_update(MbarrierState& state, unsigned arrivals, long bytes, const void* pc) {
  if (arrivals > state.pending)
    fail("mbarrier: more arrivals in a phase than its count, " + std::to_string(state.count), pc);
  state.pending -= arrivals;
  state.bytes += bytes;
  if (state.pending > 0 || state.bytes > 0) return;
  if (state.bytes < 0) fail("mbarrier: more bytes stored in a phase than expected", pc);
  ++state.phase;
  state.pending = state.count;
  state.done.join(state.arriving);
  state.arriving = {};
  for (Fiber* fiber : state.waiting) wake(fiber);
  state.waiting.clear();
  progress();
}

void Engine::send(Flight flight) {
  flights_.push_back(std::move(flight));
}

void Engine::deliver() {
  if (options_.policy != Policy::round_robin)
    std::swap(flights_.front(), flights_[rng.below(flights_.size())]);
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  *flight.to = flight.value;
  MbarrierState& state = block_at(flight.to).mbarriers.at(flight.barrier);
  state.arriving.join_reads(flight.reads);
  for (std::vector<int>* known : {&state.arriving.all, &state.arriving.reads}) {
    int& time = (*known)[flight.component];
    time = std::max(time, flight.time);
  }
  mbarrier_update(state, 0, -4, flight.pc);
}

// --- shared memory -------------------------------------------------------------------------------

void* Engine::shared_object(const std::type_info& type, size_t bytes, size_t alignment) {
  const auto [at, added] = shared_offsets_.try_emplace(type, 0);
  if (added) {
    const size_t before = shared_end_ + Memory::kRedzone;
    at->second = (shared_end_ + alignment - 1) / alignment * alignment;
    shared_end_ = at->second + bytes + Memory::kRedzone;
    if (bytes > kStaticLimit || shared_end_ > kSharedLimit) fail("too much shared memory in one block");
    for (Block& block : blocks)
      if (block.arena != nullptr) memory.poison(block.slot, before, shared_end_ + Memory::kRedzone);
    char* name = abi::__cxa_demangle(type.name(), nullptr, nullptr, nullptr);
    memory.add_shared({at->second, bytes, plain_name(name == nullptr ? type.name() : name)});
    std::free(name);
  }
  return self->block->arena + at->second;
}

Block& Engine::block_at(const void* p) {
  return blocks[(static_cast<const unsigned char*>(p) - arenas.at(0)) / Arenas::kStride];
}

// --- reports -------------------------------------------------------------------------------------

std::string Engine::describe(unsigned component) const {
  const Fiber& fiber = fibers_[component % fibers_.size()];
  std::ostringstream text;
  text << (is_async(component) ? "store_async of " : "") << "block " << fiber.block->x;
  if (launch.grid.y > 1) text << "," << fiber.block->y;
  text << " thread " << fiber.thread;
  return text.str();
}

// "file:line" of the innermost frame that is not the emulator's own; of a kernel, its name.
std::string Engine::source(const void* pc) const {
  Dl_info info{};
  if (pc == nullptr || dladdr(pc, &info) == 0) return "?";
  const bool name = pc == launch.kernel;
  char command[600];
  std::snprintf(command, sizeof command, "addr2line -Cfsi -e '%s' %#zx 2>/dev/null", info.dli_fname,
                static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase) - (name ? 0 : 1));
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "?";
  char function[512], line[512];
  std::string found = "?";
  while (std::fgets(function, sizeof function, pipe) && std::fgets(line, sizeof line, pipe)) {
    const std::string text = line;
    if (text.compare(0, 9, "device.h:") == 0) continue;
    found = name ? plain_name(function) : text.substr(0, text.find_first_of(" \n"));
    break;
  }
  pclose(pipe);
  return found;
}

std::string Engine::stall_report() const {
  std::map<std::string, std::vector<unsigned>> groups;
  for (const Fiber& fiber : fibers_) {
    if (fiber.block == nullptr || fiber.block->has_returned(fiber.thread)) continue;
    std::ostringstream key;
    key << "block " << fiber.block->x;
    if (launch.grid.y > 1) key << "," << fiber.block->y;
    key << " in " << fiber.wait.what;
    const auto barrier = fiber.block->mbarriers.find(fiber.wait.object);
    if (barrier != fiber.block->mbarriers.end()) {
      const MbarrierState& state = barrier->second;
      key << " (phase " << state.phase << ", " << state.pending << " arrivals and " << state.bytes
          << " bytes missing)";
    }
    key << " at " << fiber.wait.pc;
    groups[key.str()].push_back(fiber.thread);
  }
  std::ostringstream text;
  text << "stall: no thread can go on";
  int lines = 0;
  for (const auto& [key, threads] : groups) {
    if (++lines > 10) {
      text << "\n  ... and " << groups.size() - 10 << " more groups";
      break;
    }
    const size_t cut = key.rfind(" at ");
    const void* pc = nullptr;
    std::sscanf(key.c_str() + cut, " at %p", const_cast<void**>(&pc));
    text << "\n  " << key.substr(0, cut) << " at " << source(pc) << ": " << threads.size() << " threads, "
         << threads.front() << " to " << threads.back();
  }
  return text.str();
}

void run(const Launch& launch) {
  Engine current(launch, options);
  struct Reset {
    ~Reset() {
      last_switches = engine->switches;
      engine = nullptr;
    }
  } reset;
  engine = &current;
  current.run();
}

namespace {

void thread_entry() {
  engine->launch.call(engine->launch.arguments);
  engine->end_thread();
}

}  // namespace

}  // namespace simt
