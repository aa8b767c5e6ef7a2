// The elementwise passes of Qwen2's forward and backward, each fused into one sweep over memory.
//
// All work on contiguous row-major fp32, on blocks of rows in a fixed order, so their bits are a function of their
// arguments. None can fail; the callers in kernels/host.rs check shapes. Each kernel stands above the function that spreads
// it over blocks.
#include <cmath>
#include <vector>

#include "lanes.h"
#include "parallel.h"

namespace {

POLO_INLINE Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exponential(-x)); }

POLO_KERNEL void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* out,
                          float* inverse_rms) {
  for (int64_t row = 0; row < rows; row++, x += width, out += width) {
    Lanes squares = {};
    for_lanes(width, LANEWISE(i, n) {
      Lanes v = get(x + i, n);
      squares += v * v;
    });
    const float inverse = 1.0f / std::sqrt(fold_sum(squares) / width + eps);
    inverse_rms[row] = inverse;
    for_lanes(width, LANEWISE(i, n) { put(out + i, get(x + i, n) * inverse * get(weight + i, n), n); });
  }
}

POLO_KERNEL void rms_norm_backward(const float* x, const float* weight, const float* inverse_rms, const float* out_grad,
                                   int64_t rows, int64_t width, float* x_grad, float* weight_grad) {
  for (int64_t row = 0; row < rows; row++, x += width, out_grad += width, x_grad += width) {
    const float inverse = inverse_rms[row];
    Lanes products = {};
    for_lanes(width, LANEWISE(i, n) {
      Lanes v = get(x + i, n), g = get(out_grad + i, n);
      products += v * g * get(weight + i, n);
      put(weight_grad + i, get(weight_grad + i, n) + v * inverse * g, n);
    });
    const float mean = fold_sum(products) / width * inverse * inverse;
    for_lanes(width, LANEWISE(i, n) {
      Lanes normed = get(out_grad + i, n) * get(weight + i, n) - get(x + i, n) * mean;
      put(x_grad + i, get(x_grad + i, n) + normed * inverse, n);
    });
  }
}

POLO_KERNEL void add_rows(float* to, const float* from, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; row++, from += width)
    for_lanes(width, LANEWISE(i, n) { put(to + i, get(to + i, n) + get(from + i, n), n); });
}

POLO_KERNEL void rotate(float* row, int64_t heads, int64_t half, const float* cosine, const float* sine,
                        float direction) {
  for (int64_t head = 0; head < heads; head++, row += 2 * half) {
    for_lanes(half, LANEWISE(i, n) {
      Lanes x = get(row + i, n), y = get(row + half + i, n), c = get(cosine + i, n), s = get(sine + i, n) * direction;
      put(row + i, x * c - y * s, n);
      put(row + half + i, y * c + x * s, n);
    });
  }
}

POLO_KERNEL void swiglu(const float* gate_up, int64_t rows, int64_t width, float* out) {
  for (int64_t row = 0; row < rows; row++, gate_up += 2 * width, out += width) {
    for_lanes(width, LANEWISE(i, n) {
      Lanes gate = get(gate_up + i, n), up = get(gate_up + width + i, n);
      put(out + i, gate * sigmoid(gate) * up, n);
    });
  }
}

POLO_KERNEL void swiglu_backward(float* gate_up, float* out, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; row++, gate_up += 2 * width, out += width) {
    for_lanes(width, LANEWISE(i, n) {
      Lanes gate = get(gate_up + i, n), up = get(gate_up + width + i, n), grad = get(out + i, n);
      Lanes s = sigmoid(gate);
      put(out + i, gate * s * up, n);
      put(gate_up + i, grad * up * s * (1.0f + gate * (1.0f - s)), n);
      put(gate_up + width + i, grad * gate * s, n);
    });
  }
}

// Turns values into e^(value - top) and returns their sum, gathered in fp64 from short stretches.
POLO_INLINE double exponentiate(float* values, int64_t count, float top) {
  constexpr int64_t STRETCH = 64 * WIDTH;
  double total = 0;
  for (int64_t start = 0; start < count; start += STRETCH) {
    float* stretch = values + start;
    Lanes sum = {};
    for_lanes(std::min(STRETCH, count - start), LANEWISE(i, n) {
      Lanes e = keep(exponential(get(stretch + i, n) - top), n);
      sum += e;
      put(stretch + i, e, n);
    });
    total += fold_sum(sum);
  }
  return total;
}

POLO_KERNEL double cross_entropy(float* logits, int64_t target, int64_t vocab, float scale) {
  Lanes greatest = Lanes{} - INFINITY;
  for_lanes(vocab, LANEWISE(i, n) { greatest = maximum(get(logits + i, n, -INFINITY), greatest); });
  const float top = fold_maximum(greatest);
  const double target_logit = logits[target];
  const double total = exponentiate(logits, vocab, top);
  const float factor = static_cast<float>(scale / total);
  for_lanes(vocab, LANEWISE(i, n) { put(logits + i, get(logits + i, n) * factor, n); });
  logits[target] -= scale;
  return std::log(total) + (top - target_logit);
}

// to += shares[0] + shares[1] + ..., one share per block of rows.
void add_shares(float* to, const std::vector<float>& shares, int64_t rows, int64_t width) {
  add_rows(to, shares.data(), num_blocks(rows), width);
}

}  // namespace

extern "C" {

// out = x * inverse_rms * weight with inverse_rms = (mean(x^2) + eps)^-1/2, which is kept for the backward.
void polo_rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* out,
                   float* inverse_rms) {
  blocks_in_parallel(rows, [&](int64_t first, int64_t count) {
    rms_norm(x + first * width, weight, eps, count, width, out + first * width, inverse_rms + first);
  });
}

// Adds to x_grad and weight_grad.
void polo_rms_norm_backward(const float* x, const float* weight, const float* inverse_rms, const float* out_grad,
                            int64_t rows, int64_t width, float* x_grad, float* weight_grad) {
  std::vector<float> shares(num_blocks(rows) * width);
  blocks_in_parallel(rows, [&](int64_t first, int64_t count) {
    const int64_t at = first * width;
    float* share = shares.data() + first / BLOCK_ROWS * width;
    rms_norm_backward(x + at, weight, inverse_rms + first, out_grad + at, count, width, x_grad + at, share);
  });
  add_shares(weight_grad, shares, rows, width);
}

// Rotates the first `heads` heads of each row, half against half, by the angles of the row's position; direction -1
// undoes it, which is also its backward. cosine and sine are [positions, half].
void polo_rotate(float* rows_of_heads, int64_t rows, int64_t stride, const int64_t* positions, int64_t heads,
                 int64_t half, const float* cosine, const float* sine, float direction) {
  blocks_in_parallel(rows, [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; row++) {
      const int64_t at = positions[row] * half;
      rotate(rows_of_heads + row * stride, heads, half, cosine + at, sine + at, direction);
    }
  });
}

// out[r] = silu(gate[r]) * up[r]; a row of gate_up is gate then up, `width` each.
void polo_swiglu(const float* gate_up, int64_t rows, int64_t width, float* out) {
  blocks_in_parallel(rows, [&](int64_t first, int64_t count) {
    swiglu(gate_up + first * 2 * width, count, width, out + first * width);
  });
}

// Replaces gate_up by its gradient, and the gradient in `out` by the forward's result, which the next matmul wants.
void polo_swiglu_backward(float* gate_up, float* out, int64_t rows, int64_t width) {
  blocks_in_parallel(rows, [&](int64_t first, int64_t count) {
    swiglu_backward(gate_up + first * 2 * width, out + first * width, count, width);
  });
}

// losses[r] = log(sum(exp(logits[r]))) - logits[r][target]; logits become scale * d(loss)/d(logits).
void polo_cross_entropy(float* logits, const int64_t* targets, int64_t rows, int64_t vocab, float scale,
                        double* losses) {
  in_parallel(rows, [&](int64_t row) {
    losses[row] = cross_entropy(logits + row * vocab, targets[row], vocab, scale);
  });
}

// to[indices[r]] += from[r], one row after the other: an index may come twice.
void polo_add_rows_at(float* to, const int64_t* indices, const float* from, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; row++) add_rows(to + indices[row] * width, from + row * width, 1, width);
}

// to += the sum of all rows.
void polo_add_row_sum(float* to, const float* from, int64_t rows, int64_t width) {
  std::vector<float> shares(num_blocks(rows) * width);
  blocks_in_parallel(rows, [&](int64_t first, int64_t count) {
    add_rows(shares.data() + first / BLOCK_ROWS * width, from + first * width, count, width);
  });
  add_shares(to, shares, rows, width);
}

}  // extern "C"
