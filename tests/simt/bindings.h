// What bindings.cpp shares with the machine it runs on.
#pragma once

#define SIMT_API extern "C" __attribute__((visibility("default")))

void finish();  // waits for the launches before, and throws what went wrong in them
