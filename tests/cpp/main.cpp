// core_test [part of a name]: the tests of csrc/core, for the instruction set in force (LRCN_FAST_ISA).
#include <cstdio>
#include <cstring>

#include "../../csrc/core/simd/table.h"
#include "check.h"

int main(int argc, char** argv) {
  std::printf("instruction set: %s\n", lrcn::simd::kernels().isa);
  int run = 0, failed = 0;
  for (const auto& test : lrcn::test::cases()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int before = lrcn::test::failures();
    lrcn::test::worst() = 0;
    test.run();
    const bool ok = lrcn::test::failures() == before;
    std::printf("%s %s", ok ? "ok    " : "FAILED", test.name);
    if (lrcn::test::worst() > 0) std::printf(" (worst error %.2f of its bound)", lrcn::test::worst());
    std::printf("\n");
    ++run, failed += !ok;
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return run == 0 || failed > 0;
}
