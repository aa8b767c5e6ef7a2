// What GPUs need of libtorch and tch does not bind: flash attention's forward, and switches that fix the order of sums.
#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_forward.h>

#include <cstring>
#include <exception>
#include <tuple>

extern "C" {

// Deterministic algorithms or an error; sums of bf16 products in fp32; new memory is not filled, since all of it is
// written before it is read.
void polo_be_deterministic() {
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setAllowBF16ReductionCuBLAS(false);
}

bool polo_is_deterministic() { return at::globalContext().deterministicAlgorithms(); }

// Causal attention of queries [rows, heads, dim] and keys and values [rows, kv_heads, dim] within spans, whose int32 bounds
// begin with 0 and end with `rows`. Fills results: out [rows, heads, dim], log_sum_exp [heads, rows], and two tensors that
// the backward wants. Returns null, or what went wrong as a string for polo_release.
char* polo_flash_attention(const at::Tensor* queries, const at::Tensor* keys, const at::Tensor* values,
                           const at::Tensor* bounds, int64_t longest, double scale, at::Tensor* const* results) {
  try {
    at::Tensor debug_mask;
    std::tie(*results[0], *results[1], *results[2], *results[3], debug_mask) = at::_flash_attention_forward(
        *queries, *keys, *values, *bounds, *bounds, longest, longest, /*dropout_p=*/0.0, /*is_causal=*/true,
        /*return_debug_mask=*/false, scale);
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}

}  // extern "C"
