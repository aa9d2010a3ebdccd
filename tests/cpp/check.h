// A test file's whole vocabulary:
//
//   TEST(beam_keeps_ties_in_order) { CHECK(a == b); CHECK_NEAR(x, y, 1e-6); CHECK_THROWS(f(), "must be"); }
//
// A failing check reports its line and values and lets the test go on; main.cpp runs every TEST of every file
// that is linked in, or those whose names contain its first argument.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace lrcn::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

// The largest error of the test so far, as a part of its bound: what a bound was chosen from.
inline double& worst() {
  static double part = 0;
  return part;
}

struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void fail_at(const char* file, int line, const std::string& what) {
  ++failures();
  if (failures() <= 50) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

inline void check_near(const char* file, int line, const char* text, double a, double b, double bound) {
  if (bound > 0) worst() = std::fmax(worst(), std::fabs(a - b) / bound);
  if (std::fabs(a - b) <= bound || (std::isnan(a) && std::isnan(b)) || a == b) return;
  char values[160];
  std::snprintf(values, sizeof values, ": %.9g against %.9g, bound %.3g", a, b, bound);
  fail_at(file, line, text + std::string(values));
}

inline void check_throws(const char* file, int line, const std::function<void()>& run,
                         const std::string& part) {
  try {
    run();
  } catch (const std::invalid_argument& error) {
    if (std::string(error.what()).find(part) == std::string::npos)
      fail_at(file, line, "expected \"" + part + "\" in \"" + error.what() + "\"");
    return;
  }
  fail_at(file, line, "expected std::invalid_argument with \"" + part + "\"");
}

}  // namespace lrcn::test

#define TEST(name)                                                          \
  static void test_##name();                                                \
  static const ::lrcn::test::Register register_##name(#name, &test_##name); \
  static void test_##name()

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) ::lrcn::test::fail_at(__FILE__, __LINE__, #condition); \
  } while (false)

#define CHECK_NEAR(a, b, bound) ::lrcn::test::check_near(__FILE__, __LINE__, #a ", " #b, a, b, bound)

#define CHECK_THROWS(expression, part) \
  ::lrcn::test::check_throws(__FILE__, __LINE__, [&] { (void)(expression); }, part)
