// Causal grouped-query attention on rows of fused heads, forward and backward.
//
// A row of qkv holds one token's query heads, then its key heads, then its value heads. For each query head, QUERIES
// rows at a time meet all keys up to the last of them: their scores fit the cache, the upper triangle is skipped, and
// nothing is copied, transposed or repeated for the group. Rows attend within their span alone, a sample or a document of
// one; spans lie one after another. Units of one span and one key head write apart from each other, so they may run in any
// thread; within a unit the order is fixed.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "lanes.h"
#include "parallel.h"

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
  int64_t heads, kv_heads, dim;
  int64_t row() const { return (heads + 2 * kv_heads) * dim; }
  int64_t out_row() const { return heads * dim; }
  int64_t group() const { return heads / kv_heads; }
  int64_t keys_at(int64_t head) const { return (heads + head / group()) * dim; }
  int64_t values_at(int64_t head) const { return keys_at(head) + kv_heads * dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
};

// Where each span begins, in rows, and after the last one its end.
struct Spans {
  const int64_t* bounds;
  int64_t count;
  int64_t rows() const { return bounds[count]; }
  int64_t length(int64_t span) const { return bounds[span + 1] - bounds[span]; }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t span = 0; span < count; span++) most = std::max(most, length(span));
    return most;
  }
};

// Scores of one block of queries against so many keys, on a cache line's boundary like every tensor.
struct Scratch {
  std::unique_ptr<float, void (*)(void*)> memory;
  explicit Scratch(int64_t keys)
      : memory(static_cast<float*>(std::aligned_alloc(64, QUERIES * ((keys + 15) / 16 * 16) * sizeof(float))),
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
    for_lanes(seen, LANEWISE(i, n) {
      greatest = maximum(get(scores + i, n, -INFINITY), greatest);
    });
    const float top = fold_maximum(greatest);
    for_lanes(seen, LANEWISE(i, n) {
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
    for_lanes(dim, LANEWISE(i, n) {
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
    for_lanes(dim, LANEWISE(i, n) {
      products += get(out + i, n) * get(out_grad + i, n);
    });
    const float mean = fold_sum(products), shift = log_sum_exp[row];
    for_lanes(seen, LANEWISE(i, n) {
      Lanes p = exponential(get(scores + i, n) - shift);
      put(scores + i, p, n);
      put(grads + i, p * (get(grads + i, n) - mean), n);
    });
    std::fill(scores + seen, scores + columns, 0.0f);
    std::fill(grads + seen, grads + columns, 0.0f);
  }
}

void forward_head(const float* queries, const float* keys, const float* values, const Shape& shape, int64_t length,
                  float* scores, float* out, float* log_sum_exp) {
  float inverse_sums[QUERIES];
  for (int64_t first = 0; first < length; first += QUERIES) {
    const int64_t rows = std::min(QUERIES, length - first), seen = first + rows, dim = shape.dim;
    const Matrix block{queries + first * shape.row(), shape.row()};
    float* to = out + first * shape.out_row();
    multiply(scores, seen, rows, seen, dim, shape.scale(), block, {keys, shape.row(), true}, 0);
    exponentiate(scores, rows, seen, first, inverse_sums, log_sum_exp + first);
    multiply(to, shape.out_row(), rows, dim, seen, 1, {scores, seen}, {values, shape.row()}, 0);
    scale_rows(to, shape.out_row(), rows, dim, inverse_sums);
  }
}

// One query head's pointers, into the forward's results or into gradients.
struct Head {
  const float *queries, *keys, *values, *out, *out_grad, *log_sum_exp;
  float *queries_grad, *keys_grad, *values_grad;
};

void backward_head(const Head& head, const Shape& shape, int64_t length, float* scores, float* grads) {
  for (int64_t first = 0; first < length; first += QUERIES) {
    const int64_t rows = std::min(QUERIES, length - first), seen = first + rows, dim = shape.dim;
    const int64_t row = shape.row(), out_row = shape.out_row();
    const Matrix queries{head.queries + first * row, row}, out_grad{head.out_grad + first * out_row, out_row};
    multiply(scores, seen, rows, seen, dim, shape.scale(), queries, {head.keys, row, true}, 0);
    multiply(grads, seen, rows, seen, dim, 1, out_grad, {head.values, row, true}, 0);
    softmax_backward(scores, grads, rows, seen, first, head.log_sum_exp + first, head.out + first * out_row,
                     out_grad.data, out_row, dim);
    multiply(head.values_grad, row, seen, dim, rows, 1, {scores, seen, true}, out_grad, 1);
    multiply(head.queries_grad + first * row, row, rows, dim, seen, shape.scale(), {grads, seen}, {head.keys, row}, 0);
    multiply(head.keys_grad, row, seen, dim, rows, shape.scale(), {grads, seen, true}, queries, 1);
  }
}

}  // namespace

extern "C" {

// qkv [rows, row] -> out [rows, heads * dim] and log_sum_exp [heads, rows].
void polo_attention(const float* qkv, const int64_t* bounds, int64_t num_spans, int64_t heads, int64_t kv_heads,
                    int64_t dim, float* out, float* log_sum_exp) {
  const Shape shape{heads, kv_heads, dim};
  const Spans spans{bounds, num_spans};
  const auto scratch = [&] { return Scratch(spans.longest()); };
  in_parallel(num_spans * heads, scratch, [&](int64_t unit, const Scratch& scores) {
    const int64_t span = unit / heads, head = unit % heads, first = bounds[span];
    const float* row = qkv + first * shape.row();
    forward_head(row + head * dim, row + shape.keys_at(head), row + shape.values_at(head), shape, spans.length(span),
                 scores.get(), out + first * shape.out_row() + head * dim, log_sum_exp + head * spans.rows() + first);
  });
}

// Fills qkv_grad, whose keys and values must come as zeros; out and log_sum_exp are the forward's.
void polo_attention_backward(const float* qkv, const float* out, const float* log_sum_exp, const float* out_grad,
                             const int64_t* bounds, int64_t num_spans, int64_t heads, int64_t kv_heads, int64_t dim,
                             float* qkv_grad) {
  const Shape shape{heads, kv_heads, dim};
  const Spans spans{bounds, num_spans};
  const auto scratch = [&] { return std::make_pair(Scratch(spans.longest()), Scratch(spans.longest())); };
  in_parallel(num_spans * kv_heads, scratch, [&](int64_t unit, const std::pair<Scratch, Scratch>& scores_and_grads) {
    const int64_t span = unit / kv_heads, first_head = unit % kv_heads * shape.group(), first = bounds[span];
    for (int64_t head = first_head; head < first_head + shape.group(); head++) {
      const int64_t row = first * shape.row(), out_at = first * shape.out_row() + head * dim;
      const int64_t q = row + head * dim, k = row + shape.keys_at(head), v = row + shape.values_at(head);
      backward_head({qkv + q, qkv + k, qkv + v, out + out_at, out_grad + out_at,
                     log_sum_exp + head * spans.rows() + first, qkv_grad + q, qkv_grad + k, qkv_grad + v},
                    shape, spans.length(span), scores_and_grads.first.get(), scores_and_grads.second.get());
    }
  });
}

}  // extern "C"
