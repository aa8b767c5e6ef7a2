// libtorch's fused AdamW, which tch does not bind.
#include <ATen/ops/_fused_adamw.h>

#include <cstdlib>
#include <cstring>
#include <exception>

extern "C" {

// One AdamW update of the given slices, in place; `step` is an fp32 scalar tensor holding the update's number (from 1).
// Returns null, or what went wrong as a string for polo_release.
char* polo_fused_adamw(at::Tensor* param, at::Tensor* grad, at::Tensor* exp_avg, at::Tensor* exp_avg_sq,
                       at::Tensor* step, double learning_rate, double beta1, double beta2, double eps,
                       double weight_decay) {
  try {
    at::_fused_adamw_({*param}, {*grad}, {*exp_avg}, {*exp_avg_sq}, {}, {*step}, learning_rate, beta1, beta2,
                      weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}

void polo_release(char* message) { std::free(message); }

}  // extern "C"
