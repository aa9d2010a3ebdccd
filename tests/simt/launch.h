// csrc/cuda/launch.h for the host compiler: runs the kernel to its end before it returns, and throws
// simt::Failure where a GPU would race, hang or corrupt memory. A stream is nullptr, or that of a Graph,
// which keeps the launches with their arguments as they are then.
#pragma once

#include <type_traits>
#include <vector>

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
void keep(const Launch& launch, CUstream_st& stream);

}  // namespace simt

struct CUstream_st {
  struct Kept {
    simt::Launch launch;
    std::vector<unsigned char> arguments;
  };
  std::vector<Kept> kept;
};

namespace lrcn::cuda {

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), Grid grid, unsigned block, unsigned cluster, size_t dynamic_shared,
            CUstream_st* stream, Args... args) {
  const auto call = [=] { kernel(static_cast<Params>(args)...); };
  using Call = decltype(call);
  static_assert(std::is_trivially_copyable_v<Call>, "a kernel's arguments are copied as bytes");
  const simt::Launch launch{grid,
                            block,
                            cluster,
                            dynamic_shared,
                            reinterpret_cast<const void*>(kernel),
                            [](const void* p) { (*static_cast<Call*>(p))(); },
                            &call,
                            sizeof call};
  if (stream == nullptr) return simt::run(launch);
  simt::keep(launch, *stream);
}

class Graph {
 public:
  template <typename F>
  explicit Graph(F&& enqueue) {
    enqueue(&stream_);
  }
  void launch(CUstream_st*) const {
    for (const CUstream_st::Kept& kept : stream_.kept) simt::run(kept.launch);
  }

 private:
  CUstream_st stream_;
};

}  // namespace lrcn::cuda
