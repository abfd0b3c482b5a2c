// SPDX-License-Identifier: Apache-2.0
// Runs sparsekit's CUDA kernels on the emulator under ThreadSanitizer, which ends the process at the first race.
//
//   race_check select SEED COUNT   selections, compared with a stable sort; every phase has to occur
//   race_check masks SEED COUNT    packing, unpacking, counting, masked weights
//   race_check structured SEED COUNT   scores of units, their masks, n:m
//   race_check probe NAME          one tiny kernel
#include <cstdio>
#include <cstdlib>
#include <string>

// The kernels and the layout of their workspace, which tells the phases that occur.
#include "topk_mask.cu"

#include "mask_cuda.h"
#include "race_data.h"
#include "race_probes.h"

namespace {

using namespace races;
using namespace sparsekit;

[[noreturn]] void wrong(const std::string& what) {
  std::fprintf(stderr, "race_check: wrong result: %s\n", what.c_str());
  std::exit(1);
}

void require(int code) {
  if (code != 0) wrong("error " + std::to_string(code));
}

constexpr int kPhases = static_cast<int>(cuda::Phase::kDone);
constexpr int64_t kMostSegments = 128;
const cuda::Phase* phases[kMostSegments];  // of the segments of the running selection
int64_t segments = 0;
int64_t rounds_in[kPhases + 1];

__attribute__((no_sanitize("thread"))) void note_phases() {
  for (int64_t i = 0; i < segments; ++i) ++rounds_in[static_cast<int>(*phases[i])];
}

struct Selection {
  std::vector<Tensor> tensors;
  std::vector<int64_t> kept;
  bool per_tensor;
  SelectOptions options;
  int64_t max_blocks;
};

Selection draw_selection(Random& random) {
  const Dtype dtype = static_cast<Dtype>(below(random, 4));
  Selection result{draw_tensors(random, dtype), {}, below(random, 3) == 0,
                   {dtype, static_cast<KeyKind>(below(random, 2)), draw_policy(random), 1, "",
                    below(random, 5) == 0 ? Method::kRadix : Method::kBracket},
                   1 + below(random, 4)};
  std::vector<double> all;
  for (Tensor& tensor : result.tensors) {
    const std::vector<double> own = values_of(tensor, result.options.key, 0, tensor.numel());
    if (result.per_tensor) result.kept.push_back(draw_kept(random, own));
    all.insert(all.end(), own.begin(), own.end());
  }
  if (!result.per_tensor) result.kept = {draw_kept(random, all)};
  return result;
}

// Compares the masks with a stable sort; returns whether there is a NaN.
bool check(Selection& selection) {
  const KeyKind key = selection.options.key;
  std::vector<double> values;
  std::vector<bool> chosen;
  int64_t nans = 0, first = 0;
  for (size_t i = 0; i < selection.tensors.size(); ++i) {
    Tensor& tensor = selection.tensors[i];
    const std::vector<double> own = values_of(tensor, key, 0, tensor.numel());
    values.insert(values.end(), own.begin(), own.end());
    if (!selection.per_tensor) continue;
    int64_t bad;
    if (!holds(tensor, stable_choice(own, selection.kept[i], selection.options.nan, &bad), 0)) wrong("mask of a tensor");
    nans += bad;
  }
  if (selection.per_tensor) return nans > 0;
  chosen = stable_choice(values, selection.kept[0], selection.options.nan, &nans);
  for (const Tensor& tensor : selection.tensors) {
    if (!holds(tensor, chosen, first)) wrong("mask of all tensors");
    first += tensor.numel();
  }
  return nans > 0;
}

std::vector<ScoreTensor> list_of(Selection& selection) {
  std::vector<ScoreTensor> list;
  for (Tensor& tensor : selection.tensors) {
    list.push_back({tensor.scores(), tensor.words.data(), tensor.rows, tensor.cols});
  }
  return list;
}

template <class U>
void watch_phases(const cuda::Plan& plan, const SelectOptions& options, void* memory) {
  int64_t bytes;
  const cuda::Workspace<U> w = cuda::lay_out<U>(plan, options, memory, &bytes);
  segments = std::min(kMostSegments, w.segment_count);
  for (int64_t i = 0; i < segments; ++i) phases[i] = &w.segments[i].phase;
}

void run_selection(Selection& selection, WarmBracket* warm) {
  const std::vector<ScoreTensor> list = list_of(selection);
  const Dtype dtype = selection.options.dtype;
  const int64_t bytes = cuda::topk_workspace(list, selection.per_tensor, dtype);
  std::vector<uint64_t> memory(static_cast<size_t>(bytes / 8 + 1), 0x5a5a5a5a5a5a5a5a);
  const cuda::Plan plan(list, selection.kept, selection.per_tensor);
  sparsekit::for_width(dtype, [&](auto bits) { watch_phases<decltype(bits)>(plan, selection.options, memory.data()); });
  uint8_t invalid = 9;
  require(cuda::topk_mask(list, selection.kept, selection.per_tensor, selection.options,
                          {&invalid, warm, memory.data(), bytes}, selection.max_blocks, 0, 0));
  const bool has_nan = check(selection);
  if (invalid != (has_nan && selection.options.nan == NanPolicy::kError)) wrong("flag of NaN");
}

void select_lists(Random& random) {
  Selection selection = draw_selection(random);
  std::vector<WarmBracket> warm(selection.kept.size(), WarmBracket{0, 0, 0});
  const bool is_warm = below(random, 3) == 0;
  const int64_t runs = is_warm ? 3 : 1;
  for (int64_t run = 0; run < runs; ++run) {
    run_selection(selection, is_warm ? warm.data() : nullptr);
    for (Tensor& tensor : selection.tensors) {
      for (int64_t i = run; i < tensor.numel(); i += 7) tensor.set(i, tensor.get(i) * 1.01);
    }
  }
}

void select_rows(Random& random) {
  constexpr int64_t kCols[] = {1, 9, 33, 64, 500, 4500};
  Tensor tensor(1 + below(random, 9), kCols[below(random, 6)], static_cast<Dtype>(below(random, 4)), below(random, 4) == 0);
  const Content content = static_cast<Content>(below(random, kContents));
  tensor.fill(random, content, below(random, 3) == 0);
  const SelectOptions options{tensor.dtype, static_cast<KeyKind>(below(random, 2)), draw_policy(random), 1, ""};
  const int64_t kept = draw_kept(random, values_of(tensor, options.key, 0, tensor.cols));
  uint8_t invalid = 0;
  const ScoreTensor scores{tensor.scores(), tensor.words.data(), tensor.rows, tensor.cols};
  require(cuda::topk_mask_rows(scores, kept, options, &invalid, 0, 0));
  std::vector<bool> chosen;
  bool has_nan = false;
  for (int64_t row = 0; row < tensor.rows; ++row) {
    int64_t nans;
    const std::vector<double> values = values_of(tensor, options.key, row * tensor.cols, tensor.cols);
    const std::vector<bool> own = stable_choice(values, kept, options.nan, &nans);
    chosen.insert(chosen.end(), own.begin(), own.end());
    has_nan |= nans > 0;
  }
  if (!holds(tensor, chosen, 0)) wrong("mask of rows");
  if (invalid != (has_nan && options.nan == NanPolicy::kError)) wrong("flag of NaN in rows");
}

void mask_tensor(Random& random) {
  constexpr int64_t kCols[] = {1, 31, 32, 36, 64, 144};
  const Dtype dtype = static_cast<Dtype>(below(random, 4));
  const int64_t cols = kCols[below(random, 6)], rows = 1 + below(random, 24 / sparsekit::words_per_row(cols));
  const int64_t spatial = cols % 9 == 0 && below(random, 2) == 0 ? 9 : 1;
  Tensor weight(rows, cols, dtype, below(random, 4) == 0), out(rows, cols, dtype, false);
  weight.fill(random, kNormal, false);
  std::vector<uint8_t> mask(static_cast<size_t>(rows * cols)), back(mask.size(), 9);
  for (uint8_t& byte : mask) byte = static_cast<uint8_t>(below(random, 3));
  require(cuda::pack_mask(mask.data(), weight.words.data(), rows, cols, 0, 0));
  require(cuda::unpack_mask(weight.words.data(), back.data(), rows, cols, 0, 0));
  require(cuda::mask_weights({{weight.scores(), weight.words.data(), out.scores(), rows, cols, spatial}}, dtype, dtype, 0, 0));
  for (int64_t at = 0; at < rows * cols; ++at) {
    const int64_t channels = cols / spatial, col = at % cols % channels * spatial + at % cols / channels;
    const bool bit = mask[static_cast<size_t>(at)] != 0, used = mask[static_cast<size_t>(at - at % cols + col)] != 0;
    if (back[static_cast<size_t>(at)] != bit) wrong("unpacked mask");
    if (out.get(at) != (used ? weight.get(at) : 0)) wrong("masked weight");
  }
}

void count_bits(Random& random) {
  std::vector<uint32_t> words(static_cast<size_t>(below(random, 700)));
  int64_t want = 0, total = -1;
  for (uint32_t& word : words) {
    word = static_cast<uint32_t>(random());
    want += popcount32(word);
  }
  require(cuda::popcount(words.data(), static_cast<int64_t>(words.size()), &total, 0, 0));
  if (total != want) wrong("number of bits");
}

int select(uint64_t seed, int64_t count) {
  emulator::at_grid_barrier = &note_phases;
  for (int64_t i = 0; i < count; ++i) {
    setenv("EMULATOR_SEED", std::to_string(seed + static_cast<uint64_t>(i)).c_str(), 1);
    Random random(seed + static_cast<uint64_t>(i));
    if (i % 4 == 3) select_rows(random);
    else select_lists(random);
  }
  for (int phase = 0; phase < kPhases; ++phase) {
    std::printf("phase %d: %lld rounds\n", phase, static_cast<long long>(rounds_in[phase]));
    if (rounds_in[phase] == 0) wrong("phase " + std::to_string(phase) + " never occurred");
  }
  return 0;
}

int masks(uint64_t seed, int64_t count) {
  Random random(seed);
  for (int64_t i = 0; i < count; ++i) {
    mask_tensor(random);
    count_bits(random);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  if (what == "select" && count == 4) return select(std::strtoull(arguments[2], nullptr, 10), std::atoll(arguments[3]));
  if (what == "masks" && count == 4) return masks(std::strtoull(arguments[2], nullptr, 10), std::atoll(arguments[3]));
  if (what == "structured" && count == 4) return structured(std::strtoull(arguments[2], nullptr, 10), std::atoll(arguments[3]));
  if (what == "probe" && count == 3 && probe_named(arguments[2]) != Probe::kEnd) {
    run_probe(probe_named(arguments[2]));
    return 0;
  }
  std::fprintf(stderr, "race_check: expected select SEED COUNT, masks SEED COUNT or probe NAME\n");
  return 2;
}
