// numpy arrays at the boundary of core.
//
// Taking py::array and checking here, rather than letting pybind11 convert, keeps hidden copies out of
// latency-critical loops, and keeps pybind11 from printing the whole array in a TypeError.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../core/base.h"
#include "../core/weight_type.h"

namespace lrcn::runtime {

namespace py = pybind11;

inline std::string text(const py::handle& object) {
  return py::str(object);
}

// The data of a C-contiguous array of this dtype and shape, or an error that says what it is instead:
//   elements<float>("LstmStream.step: xg [B, 4H]", xg, {B, 4 * H})
template <typename T>
const T* elements(const std::string& what, const py::array& array, const std::vector<py::ssize_t>& shape) {
  LRCN_CHECK(py::isinstance<py::array_t<T>>(array), what, " must be ", text(py::dtype::of<T>()), ", got ",
             text(array.dtype()));
  const std::vector<py::ssize_t> got(array.shape(), array.shape() + array.ndim());
  LRCN_CHECK(got == shape, what, " must have shape ", text(py::tuple(py::cast(shape))), ", got ",
             text(array.attr("shape")));
  LRCN_CHECK((array.flags() & py::array::c_style) != 0, what,
             " must be C-contiguous; use np.ascontiguousarray");
  return static_cast<const T*>(array.data());
}

inline int64_t size_of(const std::string& what, const py::array& array, int64_t dims, int64_t dim) {
  LRCN_CHECK(array.ndim() == dims, what, " must have ", dims, " dimensions, got shape ",
             text(array.attr("shape")));
  return array.shape(dim);
}

inline WeightType weight_type(const std::string& what, const std::string& dtype) {
  if (dtype == "float32") return WeightType::kFloat32;
  if (dtype == "bfloat16") return WeightType::kBFloat16;
  if (dtype == "int8") return WeightType::kInt8;
  fail(what, ": dtype must be float32, bfloat16 or int8, got ", dtype);
}

void bind_lstm_stream(py::module_& m);
void bind_decoder(py::module_& m);

}  // namespace lrcn::runtime
