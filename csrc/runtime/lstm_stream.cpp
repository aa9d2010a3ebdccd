// One LSTM layer fed one frame at a time.
#include "../core/lstm.h"
#include "../core/memory.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "arrays.h"

namespace lrcn::runtime {
namespace {

// Holds the state, so a stream costs one step per frame. Frames of one stream are in order, so calls
// from several threads take turns.
class LstmStream {
 public:
  LstmStream(const py::object& w_hh, const py::object& batch, const py::object& w_ih, const py::object& bias,
             const py::object& dtype, const py::object& threads)
      : batch_(integer("LstmStream: batch", batch, 1, INT32_MAX)),
        hidden_(size_of("LstmStream: w_hh [4H, H]", w_hh, 2, 1)),
        input_(w_ih.is_none() ? 0 : size_of("LstmStream: w_ih [4H, I]", w_ih, 2, 1)),
        type_(weight_type("LstmStream", dtype)),
        parallel_(threads_of("LstmStream", threads)) {
    LRCN_CHECK(hidden_ > 0, "LstmStream: w_hh [4H, H] must have H of at least 1, got 0");
    LRCN_CHECK(w_ih.is_none() || input_ > 0, "LstmStream: w_ih [4H, I] must have I of at least 1, got 0");
    LRCN_CHECK(bias.is_none() || !w_ih.is_none(),
               "LstmStream: bias must be None without w_ih, because it is part of xg, got ", kind(bias));
    const float* hh = elements<float>("LstmStream: w_hh [4H, H]", w_hh, {4 * hidden_, hidden_});
    const float* ih =
        w_ih.is_none() ? nullptr : elements<float>("LstmStream: w_ih [4H, I]", w_ih, {4 * hidden_, input_});
    bias_.resize(4 * hidden_);
    if (!bias.is_none())
      std::copy_n(elements<float>("LstmStream: bias [4H]", bias, {4 * hidden_}), 4 * hidden_, bias_.begin());
    packed_ = allocate_packed(lstm_packed_bytes(hidden_, input_, hidden_, type_));
    lstm_pack(ih, input_, input_, hh, hidden_, hidden_, type_, packed_.get(), parallel_);
    for (auto& state : h_) state.resize(batch_ * hidden_);
    for (auto& state : c_) state.resize(batch_ * hidden_);
  }

  // x [B, I], or xg [B, 4H] without w_ih -> h [B, H]
  py::array_t<float> step(const py::object& frame) {
    const int64_t width = input_ > 0 ? input_ : 4 * hidden_;
    const char* what = input_ > 0 ? "LstmStream.step: x [B, I]" : "LstmStream.step: xg [B, 4H]";
    const float* from = elements<float>(what, frame, {batch_, width});
    // Copied while the GIL keeps other threads from writing to it.
    const std::vector<float> in(from, from + batch_ * width);
    py::array_t<float> out({batch_, hidden_});
    float* to = out.mutable_data();
    {
      const py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      run(in.data(), width);
      std::copy(h_[now_].begin(), h_[now_].end(), to);
    }
    return out;
  }

  void reset() {
    const std::lock_guard<std::mutex> lock(mutex_);
    h_[now_].assign(batch_ * hidden_, 0.0f);
    c_[now_].assign(batch_ * hidden_, 0.0f);
  }

  std::pair<py::array_t<float>, py::array_t<float>> state() {
    py::array_t<float> h({batch_, hidden_}), c({batch_, hidden_});
    const std::lock_guard<std::mutex> lock(mutex_);
    std::copy(h_[now_].begin(), h_[now_].end(), h.mutable_data());
    std::copy(c_[now_].begin(), c_[now_].end(), c.mutable_data());
    return {h, c};
  }

  void set_state(const py::object& h, const py::object& c) {
    const float* new_h = elements<float>("LstmStream.set_state: h [B, H]", h, {batch_, hidden_});
    const float* new_c = elements<float>("LstmStream.set_state: c [B, H]", c, {batch_, hidden_});
    const std::lock_guard<std::mutex> lock(mutex_);
    std::copy_n(new_h, batch_ * hidden_, h_[now_].begin());
    std::copy_n(new_c, batch_ * hidden_, c_[now_].begin());
  }

 private:
  void run(const float* in, int64_t width) {
    const int64_t H = hidden_, next = 1 - now_;
    std::vector<const float*> init(batch_), x(batch_), h_prev(batch_), c_prev(batch_);
    std::vector<float*> h(batch_), c(batch_);
    for (int64_t b = 0; b < batch_; ++b) {
      init[b] = input_ > 0 ? bias_.data() : in + b * width;
      x[b] = in + b * width;
      h_prev[b] = h_[now_].data() + b * H, c_prev[b] = c_[now_].data() + b * H;
      h[b] = h_[next].data() + b * H, c[b] = c_[next].data() + b * H;
    }
    LstmStep step{};
    step.packed = packed_.get(), step.type = type_, step.hidden = H, step.rows = batch_;
    step.init_a = init.data(), step.x = x.data(), step.kx = input_;
    step.h_prev = h_prev.data(), step.kh = H, step.c_prev = c_prev.data();
    step.h = h.data(), step.c = c.data();
    lstm_step(step, parallel_);
    now_ = next;
  }

  int64_t batch_, hidden_, input_;
  WeightType type_;
  Parallel parallel_;
  PackedBuffer packed_;
  std::vector<float> bias_, h_[2], c_[2];
  int64_t now_ = 0;  // which half of the double-buffered state is current
  std::mutex mutex_;
};

}  // namespace

void bind_lstm_stream(py::module_& m) {
  py::class_<LstmStream>(
      m, "LstmStream",
      "One LSTM layer fed one frame at a time.\n\n"
      "Args:\n"
      "    w_hh: Recurrent weight, gates i, f, g, o. float32 [4H, H].\n"
      "    batch: Rows that advance together.\n"
      "    w_ih: Input weight. Without it, step takes input gates. float32 [4H, I].\n"
      "    bias: bias_ih + bias_hh, with w_ih only. float32 [4H].\n"
      "    dtype: How the weights are stored: float32, bfloat16 or int8.\n"
      "    threads: Threads that share a step, 0 for as many as there are cores. The result\n"
      "        is the same. One call of the runtime at a time has more than its own.")
      .def(py::init<const py::object&, const py::object&, const py::object&, const py::object&,
                    const py::object&, const py::object&>(),
           py::arg("w_hh"), py::arg("batch") = 1, py::kw_only(), py::arg("w_ih") = py::none(),
           py::arg("bias") = py::none(), py::arg("dtype") = "float32", py::arg("threads") = 1)
      .def("step", &LstmStream::step, py::arg("frame"),
           "Advance one step.\n\n"
           "Args:\n"
           "    frame: x [B, I] with w_ih; else input gates, x @ w_ih.T + b [B, 4H]. float32.\n\n"
           "Returns:\n    The hidden state. float32 [B, H].")
      .def("reset", &LstmStream::reset, "Set the state to zero.")
      .def_property_readonly("state", &LstmStream::state, "A copy of (h, c). float32 [B, H] each.")
      .def("set_state", &LstmStream::set_state, py::arg("h"), py::arg("c"),
           "Continue from another state. float32 [B, H] each.");
}

}  // namespace lrcn::runtime
