// numpy arrays at the boundary of core.
//
// Taking py::object and checking here, rather than letting pybind11 convert, keeps hidden copies out of
// latency-critical loops, and makes every bad argument a ValueError of one line: pybind11's own TypeError
// prints all signatures and the whole array.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "../core/base.h"
#include "../core/weight_type.h"
#include "pool.h"

namespace lrcn::runtime {

namespace py = pybind11;

inline std::string text(const py::handle& object) {
  return py::str(object);
}

// The type of an object as Python names it; the dtype of an array.
inline std::string kind(const py::handle& object) {
  if (py::isinstance<py::array>(object)) return text(object.attr("dtype"));
  return text(py::type::handle_of(object).attr("__name__"));
}

// What came instead of a scalar, in one line.
inline std::string shown(const py::handle& object) {
  const std::string value = text(py::repr(object));
  return value.size() <= 80 && value.find('\n') == std::string::npos ? value : kind(object);
}

// The data of a C-contiguous array of this dtype and shape, or an error that says what it is instead:
//   elements<float>("LstmStream.step: xg [B, 4H]", xg, {B, 4 * H})
template <typename T>
const T* elements(const std::string& what, const py::object& object, const std::vector<py::ssize_t>& shape) {
  LRCN_CHECK(py::isinstance<py::array_t<T>>(object), what, " must be ", text(py::dtype::of<T>()), ", got ",
             kind(object));
  const auto array = py::reinterpret_borrow<py::array>(object);
  const std::vector<py::ssize_t> got(array.shape(), array.shape() + array.ndim());
  LRCN_CHECK(got == shape, what, " must have shape ", text(py::tuple(py::cast(shape))), ", got ",
             text(array.attr("shape")));
  LRCN_CHECK((array.flags() & py::array::c_style) != 0, what,
             " must be C-contiguous, got other strides; use np.ascontiguousarray");
  return static_cast<const T*>(array.data());
}

inline int64_t size_of(const std::string& what, const py::object& object, int64_t dims, int64_t dim) {
  LRCN_CHECK(py::isinstance<py::array>(object), what, " must be an array, got ", kind(object));
  const auto array = py::reinterpret_borrow<py::array>(object);
  LRCN_CHECK(array.ndim() == dims, what, " must have ", dims, " dimensions, got shape ",
             text(array.attr("shape")));
  return array.shape(dim);
}

// An integer within these bounds, neither of which is negative.
inline int64_t integer(const std::string& what, const py::object& value, int64_t least, int64_t most) {
  const bool is_integer = PyIndex_Check(value.ptr()) != 0 && !py::isinstance<py::bool_>(value);
  const Py_ssize_t number = is_integer ? PyNumber_AsSsize_t(value.ptr(), nullptr) : -1;
  if (PyErr_Occurred() != nullptr) PyErr_Clear();  // an array of several, whose index is an error, and -1
  LRCN_CHECK(least <= number && number <= most, what, " must be an integer in ", least, "..", most, ", got ",
             shown(value));
  return number;
}

// How many threads an object may use, 0: as many as there are cores.
inline Parallel threads_of(const std::string& name, const py::object& value) {
  const int64_t given = integer(name + ": threads", value, 0, 1024);
  return threads(given > 0 ? given : std::max<int64_t>(1, std::thread::hardware_concurrency()));
}

inline WeightType weight_type(const std::string& what, const py::object& dtype) {
  const std::string name = py::isinstance<py::str>(dtype) ? text(dtype) : "";
  if (name == "float32") return WeightType::kFloat32;
  if (name == "bfloat16") return WeightType::kBFloat16;
  if (name == "int8") return WeightType::kInt8;
  fail(what, ": dtype must be float32, bfloat16 or int8, got ", shown(dtype));
}

void bind_lstm_stream(py::module_& m);
void bind_decoder(py::module_& m);

}  // namespace lrcn::runtime
