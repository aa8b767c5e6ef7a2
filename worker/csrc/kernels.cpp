// The elementwise passes of Qwen2's forward and backward, each fused into one sweep over memory.
//
// Every function works row by row in a fixed order on contiguous row-major fp32, so its bits are a function of its
// arguments. None allocates more than a row, none can fail; the callers in kernels.rs check shapes.
#include <cmath>
#include <vector>

#include "lanes.h"

namespace {

POLO_INLINE Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace

extern "C" {

// out = x * inverse_rms * weight with inverse_rms = (mean(x^2) + eps)^-1/2, which is kept for the backward.
POLO_KERNEL void polo_rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t width, float* out,
                               float* inverse_rms) {
  for (int64_t row = 0; row < rows; row++, x += width, out += width) {
    Lanes squares = {};
    for_lanes(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Lanes v = get(x + i, n);
      squares += v * v;
    });
    const float inverse = 1.0f / std::sqrt(fold_sum(squares) / width + eps);
    inverse_rms[row] = inverse;
    for_lanes(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      put(out + i, get(x + i, n) * inverse * get(weight + i, n), n);
    });
  }
}

// Adds to x_grad and to weight_grad. Rows' shares of weight_grad are gathered sixty-four at a time.
POLO_KERNEL void polo_rms_norm_backward(const float* x, const float* weight, const float* inverse_rms,
                                        const float* out_grad, int64_t rows, int64_t width, float* x_grad,
                                        float* weight_grad) {
  std::vector<float> share(width);
  for (int64_t row = 0; row < rows; row++, x += width, out_grad += width, x_grad += width) {
    const float inverse = inverse_rms[row];
    Lanes products = {};
    for_lanes(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Lanes v = get(x + i, n), g = get(out_grad + i, n);
      products += v * g * get(weight + i, n);
      put(&share[i], get(&share[i], n) + v * inverse * g, n);
    });
    const float mean = fold_sum(products) / width * inverse * inverse;
    for_lanes(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Lanes normed = get(out_grad + i, n) * get(weight + i, n) - get(x + i, n) * mean;
      put(x_grad + i, get(x_grad + i, n) + normed * inverse, n);
    });
    if (row % 64 == 63 || row + 1 == rows) {
      for (int64_t i = 0; i < width; i++) {
        weight_grad[i] += share[i];
        share[i] = 0;
      }
    }
  }
}

// Rotates the first `heads` heads of each row, half against half, by the angles of the row's position in its sequence;
// direction -1 undoes it, which is also its backward. cosine and sine are [sequence, head_dim / 2].
POLO_KERNEL void polo_rotate(float* rows_of_heads, int64_t rows, int64_t stride, int64_t sequence, int64_t heads,
                             int64_t head_dim, const float* cosine, const float* sine, float direction) {
  const int64_t half = head_dim / 2;
  for (int64_t row = 0; row < rows; row++) {
    const float* c = cosine + row % sequence * half;
    const float* s = sine + row % sequence * half;
    for (int64_t head = 0; head < heads; head++) {
      float* a = rows_of_heads + row * stride + head * head_dim;
      float* b = a + half;
      for_lanes(half, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        Lanes x = get(a + i, n), y = get(b + i, n), cos = get(c + i, n), sin = get(s + i, n) * direction;
        put(a + i, x * cos - y * sin, n);
        put(b + i, y * cos + x * sin, n);
      });
    }
  }
}

// out[r] = silu(gate[r]) * up[r]; a row of gate_up is gate then up, `width` each.
POLO_KERNEL void polo_swiglu(const float* gate_up, int64_t rows, int64_t width, float* out) {
  for (int64_t row = 0; row < rows; row++, gate_up += 2 * width, out += width) {
    for_lanes(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Lanes gate = get(gate_up + i, n), up = get(gate_up + width + i, n);
      put(out + i, gate * sigmoid(gate) * up, n);
    });
  }
}

// Replaces gate_up by its gradient, and the gradient in `out` by the forward's result, which the next matmul wants.
POLO_KERNEL void polo_swiglu_backward(float* gate_up, float* out, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; row++, gate_up += 2 * width, out += width) {
    for_lanes(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Lanes gate = get(gate_up + i, n), up = get(gate_up + width + i, n), grad = get(out + i, n);
      Lanes s = sigmoid(gate);
      put(out + i, gate * s * up, n);
      put(gate_up + i, grad * up * s * (1.0f + gate * (1.0f - s)), n);
      put(gate_up + width + i, grad * gate * s, n);
    });
  }
}

// losses[r] = log(sum(exp(logits[r]))) - logits[r][target]; logits become scale * d(loss)/d(logits).
POLO_KERNEL void polo_cross_entropy(float* logits, const int64_t* targets, int64_t rows, int64_t vocab, float scale,
                                    double* losses) {
  for (int64_t row = 0; row < rows; row++, logits += vocab) {
    Lanes greatest = Lanes{} - INFINITY;
    for_lanes(vocab, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      greatest = maximum(get(logits + i, n, -INFINITY), greatest);
    });
    const float top = fold_maximum(greatest);
    const float target_logit = logits[targets[row]];
    double total = 0;
    for (int64_t start = 0; start < vocab; start += 64 * WIDTH) {  // short fp32 sums, gathered in fp64
      const int64_t stretch = vocab - start < 64 * WIDTH ? vocab - start : 64 * WIDTH;
      Lanes sum = {};
      for_lanes(stretch, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        Lanes e = exponential(get(logits + start + i, n, -INFINITY) - top);
        sum += keep(e, n);
        put(logits + start + i, e, n);
      });
      total += fold_sum(sum);
    }
    losses[row] = std::log(total) + ((double)top - (double)target_logit);
    const float factor = (float)(scale / total);
    for_lanes(vocab, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      put(logits + i, get(logits + i, n) * factor, n);
    });
    logits[targets[row]] -= scale;
  }
}

// to[indices[r]] += from[r], row after row.
POLO_KERNEL void polo_add_rows_at(float* to, const int64_t* indices, const float* from, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; row++, from += width) {
    float* target = to + indices[row] * width;
    for_lanes(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      put(target + i, get(target + i, n) + get(from + i, n), n);
    });
  }
}

// to += the sum of all rows, gathered sixty-four at a time.
POLO_KERNEL void polo_add_row_sum(float* to, const float* from, int64_t rows, int64_t width) {
  std::vector<float> share(width);
  for (int64_t row = 0; row < rows; row++, from += width) {
    for_lanes(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      put(&share[i], get(&share[i], n) + get(from + i, n), n);
    });
    if (row % 64 == 63 || row + 1 == rows) {
      for (int64_t i = 0; i < width; i++) {
        to[i] += share[i];
        share[i] = 0;
      }
    }
  }
}

}  // extern "C"
