// Independent units of work on the threads that libtorch was given. Units are cut without regard to the number of
// threads, so that number changes no bit.
#pragma once

#include <algorithm>
#include <cstdint>

constexpr int64_t BLOCK_ROWS = 16;

inline int64_t num_blocks(int64_t rows) { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

// Calls body(unit, what the thread's make() gave).
template <typename Make, typename Body>
void in_parallel(int64_t units, const Make& make, const Body& body) {
#pragma omp parallel
  {
    auto state = make();
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; unit++) body(unit, state);
  }
}

// Calls body(unit).
template <typename Body>
void in_parallel(int64_t units, const Body& body) {
#pragma omp parallel for schedule(static)
  for (int64_t unit = 0; unit < units; unit++) body(unit);
}

// Calls body(first row, number of rows) for blocks of BLOCK_ROWS rows.
template <typename Body>
void blocks_in_parallel(int64_t rows, const Body& body) {
  in_parallel(num_blocks(rows), [&](int64_t block) {
    const int64_t first = block * BLOCK_ROWS;
    body(first, std::min(BLOCK_ROWS, rows - first));
  });
}
