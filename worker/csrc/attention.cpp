// Causal grouped-query attention on rows of fused heads, forward and backward.
//
// A row of qkv holds one token's query heads, then its key heads, then its value heads. For each query head, QUERIES
// rows at a time meet all keys up to the last of them: their scores fit the cache, the upper triangle is skipped, and
// nothing is copied, transposed or repeated for the group. Units of one sample and one key head write apart from each
// other, so they may run in any thread; within a unit the order is fixed.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "lanes.h"

// The BLAS that libtorch carries and exports.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace {

constexpr int64_t QUERIES = 128;  // fixed: it decides the order of sums in the keys' and values' gradients

// A row-major matrix in memory, or its transpose.
struct Matrix {
  const float* data;
  int64_t stride;
  bool transposed = false;
};

// out[rows, columns] = alpha * a b + beta * out, row-major; BLAS is told the transposed equation.
void multiply(float* out, int64_t out_stride, int64_t rows, int64_t columns, int64_t inner, float alpha, Matrix a,
              Matrix b, float beta) {
  const int m = columns, n = rows, k = inner, lda = b.stride, ldb = a.stride, ldc = out_stride;
  sgemm_(b.transposed ? "T" : "N", a.transposed ? "T" : "N", &m, &n, &k, &alpha, b.data, &lda, a.data, &ldb, &beta, out,
         &ldc);
}

struct Shape {
  int64_t sequence, heads, kv_heads, dim;
  int64_t row() const { return (heads + 2 * kv_heads) * dim; }
  int64_t out_row() const { return heads * dim; }
  int64_t group() const { return heads / kv_heads; }
};

// Scores of one block of queries, on a cache line's boundary like every tensor.
struct Scratch {
  std::unique_ptr<float, void (*)(void*)> memory;
  explicit Scratch(int64_t sequence)
      : memory(static_cast<float*>(std::aligned_alloc(64, QUERIES * ((sequence + 15) / 16 * 16) * sizeof(float))),
               std::free) {
    if (!memory) throw std::bad_alloc();
  }
  float* get() const { return memory.get(); }
};

// Turns row r's first `first + r + 1` scores into e^(score - greatest), the rest into 0.
POLO_KERNEL void exponentiate(float* scores, int64_t rows, int64_t columns, int64_t first, float* inverse_sums,
                              float* log_sum_exp) {
  for (int64_t row = 0; row < rows; row++, scores += columns) {
    const int64_t seen = first + row + 1;
    Lanes greatest = Lanes{} - INFINITY, sum = {};
    for_lanes(seen, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      greatest = maximum(get(scores + i, n, -INFINITY), greatest);
    });
    const float top = fold_maximum(greatest);
    for_lanes(seen, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Lanes e = keep(exponential(get(scores + i, n) - top), n);
      sum += e;
      put(scores + i, e, n);
    });
    std::fill(scores + seen, scores + columns, 0.0f);
    const float total = fold_sum(sum);
    inverse_sums[row] = 1.0f / total;
    log_sum_exp[row] = top + std::log(total);
  }
}

POLO_KERNEL void scale_rows(float* out, int64_t stride, int64_t rows, int64_t dim, const float* factors) {
  for (int64_t row = 0; row < rows; row++, out += stride) {
    for_lanes(dim, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      put(out + i, get(out + i, n) * factors[row], n);
    });
  }
}

// Turns scores into probabilities p, and their gradients d into p * (d - sum(out * out_grad)).
POLO_KERNEL void softmax_backward(float* scores, float* grads, int64_t rows, int64_t columns, int64_t first,
                                  const float* log_sum_exp, const float* out, const float* out_grad, int64_t stride,
                                  int64_t dim) {
  for (int64_t row = 0; row < rows; row++, scores += columns, grads += columns, out += stride, out_grad += stride) {
    const int64_t seen = first + row + 1;
    Lanes products = {};
    for_lanes(dim, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      products += get(out + i, n) * get(out_grad + i, n);
    });
    const float mean = fold_sum(products), shift = log_sum_exp[row];
    for_lanes(seen, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Lanes p = exponential(get(scores + i, n) - shift);
      put(scores + i, p, n);
      put(grads + i, p * (get(grads + i, n) - mean), n);
    });
    std::fill(scores + seen, scores + columns, 0.0f);
    std::fill(grads + seen, grads + columns, 0.0f);
  }
}

}  // namespace

extern "C" {

// qkv [batch * sequence, row] -> out [batch * sequence, heads * dim] and log_sum_exp [batch, heads, sequence].
void polo_attention(const float* qkv, int64_t batch, int64_t sequence, int64_t heads, int64_t kv_heads, int64_t dim,
                    float* out, float* log_sum_exp) {
  const Shape shape{sequence, heads, kv_heads, dim};
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  Scratch scores(sequence);
  float inverse_sums[QUERIES];
  for (int64_t unit = 0; unit < batch * heads; unit++) {
    const int64_t sample = unit / heads, head = unit % heads;
    const float* tokens = qkv + sample * sequence * shape.row();
    const float* keys = tokens + (heads + head / shape.group()) * dim;
    const float* values = keys + kv_heads * dim;
    for (int64_t first = 0; first < sequence; first += QUERIES) {
      const int64_t rows = std::min(QUERIES, sequence - first), seen = first + rows;
      const float* queries = tokens + first * shape.row() + head * dim;
      float* to = out + (sample * sequence + first) * shape.out_row() + head * dim;
      multiply(scores.get(), seen, rows, seen, dim, scale, {queries, shape.row()}, {keys, shape.row(), true}, 0);
      exponentiate(scores.get(), rows, seen, first, inverse_sums, log_sum_exp + unit * sequence + first);
      multiply(to, shape.out_row(), rows, dim, seen, 1, {scores.get(), seen}, {values, shape.row()}, 0);
      scale_rows(to, shape.out_row(), rows, dim, inverse_sums);
    }
  }
}

// qkv_grad must come as zeros; out and log_sum_exp are the forward's.
void polo_attention_backward(const float* qkv, const float* out, const float* log_sum_exp, const float* out_grad,
                             int64_t batch, int64_t sequence, int64_t heads, int64_t kv_heads, int64_t dim,
                             float* qkv_grad) {
  const Shape shape{sequence, heads, kv_heads, dim};
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  Scratch scores(sequence), grads(sequence);
  for (int64_t unit = 0; unit < batch * heads; unit++) {
    const int64_t sample = unit / heads, head = unit % heads;
    const int64_t keys_at = sample * sequence * shape.row() + (heads + head / shape.group()) * dim;
    const float *keys = qkv + keys_at, *values = keys + kv_heads * dim;
    float *keys_grad = qkv_grad + keys_at, *values_grad = keys_grad + kv_heads * dim;
    for (int64_t first = 0; first < sequence; first += QUERIES) {
      const int64_t rows = std::min(QUERIES, sequence - first), seen = first + rows;
      const int64_t queries_at = (sample * sequence + first) * shape.row() + head * dim;
      const int64_t out_at = (sample * sequence + first) * shape.out_row() + head * dim;
      const Matrix queries{qkv + queries_at, shape.row()}, rows_grad{out_grad + out_at, shape.out_row()};
      const Matrix p{scores.get(), seen}, d{grads.get(), seen};
      multiply(scores.get(), seen, rows, seen, dim, scale, queries, {keys, shape.row(), true}, 0);
      multiply(grads.get(), seen, rows, seen, dim, 1, rows_grad, {values, shape.row(), true}, 0);
      softmax_backward(scores.get(), grads.get(), rows, seen, first, log_sum_exp + unit * sequence + first,
                       out + out_at, out_grad + out_at, shape.out_row(), dim);
      multiply(values_grad, shape.row(), seen, dim, rows, 1, {p.data, seen, true}, rows_grad, 1);
      multiply(qkv_grad + queries_at, shape.row(), rows, dim, seen, scale, d, {keys, shape.row()}, 0);
      multiply(keys_grad, shape.row(), seen, dim, rows, scale, {d.data, seen, true}, queries, 1);
    }
  }
}

}  // extern "C"
