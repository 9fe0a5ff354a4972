// Marks the functions of the C interface; everything else stays inside the library.
#pragma once

#define NB_EXPORT extern "C" __attribute__((visibility("default")))
