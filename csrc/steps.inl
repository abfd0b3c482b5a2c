// SPDX-License-Identifier: Apache-2.0
// Steps of 32 entries at a time; included once per instruction set with LANES_NAMESPACE and LANES_TARGET as in lanes.inl.

namespace sparsekit::LANES_NAMESPACE {

// Blocks [first, last) of a tensor: 32 entries of a row each, the last of a row with fewer.
template <class C, class G, class Step>
LANES_TARGET void take_steps(const StepTensor& tensor, const Step& step, int64_t first, int64_t last) {
  const int64_t per_row = words_per_row(tensor.cols);
  const unsigned reads = step.reads(), writes = step.writes();
  // Copies, so that the compiler need not fear that operands overlap; beyond the end of a row they hold anything.
  C values[kOperands][kWordBits] = {};
  G grads[kWordBits] = {};
  for (int64_t block = first; block < last; ++block) {
    const int64_t row = block / per_row, in_row = (block - row * per_row) * kWordBits, at = row * tensor.cols + in_row;
    const int count = static_cast<int>(tensor.cols - in_row < kWordBits ? tensor.cols - in_row : kWordBits);
    const uint32_t bits = active_bits(tensor, row, in_row, count);
    const auto transfer = [&](size_t size) __attribute__((always_inline)) {
      __builtin_memcpy(grads, static_cast<const G*>(tensor.grad) + at, size * sizeof(G));
      for (int r = 0; r < kOperands; ++r) {
        if (reads >> r & 1u) __builtin_memcpy(values[r], static_cast<const C*>(tensor.operands[r]) + at, size * sizeof(C));
      }
    };
    if (count == kWordBits) transfer(kWordBits);
    else transfer(static_cast<size_t>(count));
    for (int i = 0; i < kWordBits; ++i) {
      C own[kOperands] = {values[0][i], values[1][i], values[2][i]};
      step((bits >> i & 1u) != 0, step_math::widened(grads[i]), own);
      for (int r = 0; r < kOperands; ++r) values[r][i] = own[r];
    }
    for (int r = 0; r < kOperands; ++r) {
      if (!(writes >> r & 1u)) continue;
      C* const target = static_cast<C*>(tensor.operands[r]) + at;
      if (count == kWordBits) __builtin_memcpy(target, values[r], sizeof values[r]);
      else __builtin_memcpy(target, values[r], static_cast<size_t>(count) * sizeof(C));
    }
  }
}

}  // namespace sparsekit::LANES_NAMESPACE

#undef LANES_NAMESPACE
#undef LANES_TARGET
