// csrc/cuda/launch.h for the host compiler: runs the kernel to its end before it returns, and throws
// simt::Failure where a GPU would race, hang or corrupt memory.
#pragma once

#include <tuple>
#include <utility>

struct CUstream_st;

namespace simt {

struct Launch {
  lrcn::cuda::Grid grid;
  unsigned block, cluster;
  size_t dynamic_shared;
  const void* kernel;         // for its name in reports
  void (*call)(const void*);  // runs one thread of it
  const void* arguments;
  size_t argument_bytes;
};
void run(const Launch& launch);

}  // namespace simt

namespace lrcn::cuda {

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), Grid grid, unsigned block, unsigned cluster, size_t dynamic_shared,
            CUstream_st*, Args&&... args) {
  using Call = std::pair<void (*)(Params...), std::tuple<Params...>>;
  const Call call{kernel, std::tuple<Params...>(static_cast<Params>(std::forward<Args>(args))...)};
  simt::run({grid, block, cluster, dynamic_shared, reinterpret_cast<const void*>(kernel),
             [](const void* p) {
               const Call& c = *static_cast<const Call*>(p);
               std::apply(c.first, c.second);
             },
             &call, sizeof call});
}

}  // namespace lrcn::cuda
