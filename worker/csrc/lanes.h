// Sixteen floats at a time, with every order of summation written out.
//
// A kernel's bits must not depend on the compiler's choice of vector width, so reductions keep sixteen partial sums and
// fold them in one fixed way. The compiler maps `Lanes` to whatever registers the processor has.
#pragma once

#include <cstdint>
#include <cstring>

// Compiles a kernel for several instruction sets; the loader picks. x86-64-v3 and v4 both fuse multiply and add.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define POLO_KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define POLO_KERNEL
#endif
#define POLO_INLINE static inline __attribute__((always_inline))

constexpr int64_t WIDTH = 16;
typedef float Lanes __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t LanesInt __attribute__((vector_size(WIDTH * sizeof(int32_t))));

POLO_INLINE Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

POLO_INLINE void store(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// The first `count` lanes from memory, the others `fill`.
POLO_INLINE Lanes load_part(const float* from, int64_t count, float fill) {
  Lanes lanes = Lanes{} + fill;
  std::memcpy(&lanes, from, count * sizeof(float));
  return lanes;
}

POLO_INLINE void store_part(float* to, Lanes lanes, int64_t count) { std::memcpy(to, &lanes, count * sizeof(float)); }

// The first `count` lanes, zeros after them.
POLO_INLINE Lanes keep(Lanes lanes, int64_t count) {
  if (count < WIDTH) std::memset((float*)&lanes + count, 0, (WIDTH - count) * sizeof(float));
  return lanes;
}

POLO_INLINE Lanes get(const float* from, int64_t count, float fill = 0) {
  return count == WIDTH ? load(from) : load_part(from, count, fill);
}

POLO_INLINE void put(float* to, Lanes lanes, int64_t count) {
  if (count == WIDTH) store(to, lanes);
  else store_part(to, lanes, count);
}

// Calls body(offset, count) for each run of lanes in a row; count < WIDTH only in the last. Bodies are LANEWISE lambdas,
// inlined so that they are compiled for the instruction set of the kernel they stand in.
#define LANEWISE(i, n) [&](int64_t i, int64_t n) __attribute__((always_inline))
template <typename Body>
POLO_INLINE void for_lanes(int64_t width, Body body) {
  int64_t i = 0;
  for (; i + WIDTH <= width; i += WIDTH) body(i, WIDTH);
  if (i < width) body(i, width - i);
}

POLO_INLINE Lanes maximum(Lanes a, Lanes b) { return a > b ? a : b; }

POLO_INLINE float fold_sum(Lanes lanes) {
  for (int64_t half = WIDTH / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

POLO_INLINE float fold_maximum(Lanes lanes) {
  float greatest = lanes[0];
  for (int64_t i = 1; i < WIDTH; i++) greatest = lanes[i] > greatest ? lanes[i] : greatest;
  return greatest;
}

// e^x to about one unit in the last place: 2^n e^r with |r| <= ln(2)/2 and a polynomial for e^r; x is clamped to where
// the result is a normal number.
POLO_INLINE Lanes exponential(Lanes x) {
  const Lanes low = Lanes{} - 87.3f, high = Lanes{} + 88.3f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  Lanes shifted = x * 1.44269504f + round;
  LanesInt n;
  std::memcpy(&n, &shifted, sizeof n);
  Lanes whole = shifted - round;
  Lanes r = x - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  Lanes p = Lanes{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  LanesInt bits = (n + 127) << 23;
  Lanes power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}
