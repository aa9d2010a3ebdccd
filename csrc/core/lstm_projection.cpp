#include "lstm_projection.h"

#include <algorithm>

#include "pack.h"
#include "simd/table.h"

namespace lrcn {
namespace {

// Rows that are projected at once: enough to pay for reading w_ih again, few enough to stay in a cache until
// they are used (4 MB at H = 1024; 2 MB at H = 512, where 512 rows took 2 % longer at B = 128).
constexpr int64_t kRowsAhead = 256;

}  // namespace

const LstmBlock* LstmProjection::step(int64_t n, const Parallel& parallel) {
  if (n == end_) project(parallel);
  return blocks_.data() + first_block_[n - begin_];
}

void LstmProjection::project(const Parallel& parallel) {
  const int64_t panels = lstm_panel_count(shape_.hidden), panel_sums = panels * kPanelColumns;
  struct Place {
    size_t pass;
    int64_t row;  // of the pass
  };
  std::vector<const float*> x;
  std::vector<Pass> passes;
  std::vector<Place> places;  // of the blocks
  first_block_.clear();
  for (begin_ = end_; end_ < shape_.steps && static_cast<int64_t>(x.size()) < kRowsAhead; ++end_) {
    const int64_t t = shape_.time(end_);
    int64_t row = static_cast<int64_t>(x.size());
    for (int64_t b = 0; b < shape_.batch; ++b)
      if (t < shape_.length(b)) x.push_back(input_.x + shape_.row(t, b) * input_.size);
    first_block_.push_back(places.size());
    for (int64_t left = static_cast<int64_t>(x.size()) - row, rows; left > 0; left -= rows, row += rows) {
      rows = rows_of_pass(left);
      if (passes.empty() || passes.back().rows + rows > kRowsPerPass) passes.push_back({row, 0, nullptr});
      places.push_back({passes.size() - 1, row - passes.back().first});
      passes.back().rows += rows;
    }
  }
  const auto rows = static_cast<int64_t>(x.size());
  if (capacity_ < rows) {
    sums_ = allocate_scratch(rows * panel_sums * static_cast<int64_t>(sizeof(float)));
    capacity_ = rows;
  }
  for (Pass& pass : passes) pass.sums = reinterpret_cast<float*>(sums_.get()) + pass.first * panel_sums;
  blocks_.clear();
  for (const Place& place : places) {
    const Pass& pass = passes[place.pass];
    blocks_.push_back({pass.sums + place.row * kPanelColumns, pass.rows * kPanelColumns});
  }

  const simd::KernelTable& kernels = simd::kernels();
  const int64_t H = shape_.hidden, bytes = panel_bytes(input_.size, 0, input_.type);
  const bool far = is_far(panels * bytes);
  const DotInput dots(input_.type, rows, x.data(), input_.size, parallel);
  parallel(panels, panels_per_task(input_.size, rows), [&](int64_t begin, int64_t end) {
    const PanelOrder order(input_.w_ih);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = order.panel(i, begin, end);
      float bias[kPanelColumns] = {};
      const int64_t unit = p * kGroupColumns, count = std::min(kGroupColumns, H - unit);
      for (int64_t gate = 0; input_.bias != nullptr && gate < 4; ++gate)
        std::copy_n(input_.bias + gate * H + unit, count, bias + gate * kGroupColumns);
      for (const Pass& pass : passes) {
        float* sums = pass.sums + p * pass.rows * kPanelColumns;
        for (int64_t r = 0; r < pass.rows; ++r) std::copy_n(bias, kPanelColumns, sums + r * kPanelColumns);
        kernels.panel_dot({static_cast<const char*>(input_.w_ih) + p * bytes,
                           input_.type,
                           pass.rows,
                           dots.from(pass.first),
                           {},
                           sums,
                           far});
      }
    }
  });
}

}  // namespace lrcn
