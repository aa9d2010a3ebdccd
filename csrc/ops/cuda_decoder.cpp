// CUDA implementations of the decoding ops: check, allocate, enqueue.
//
// The host waits three times: for the packed decoder's description, for searches that are done (never with
// less than a segment in flight), and at the end for what went wrong, which becomes an exception. In between
// segments, each one CUDA graph, are enqueued ahead of the GPU. Graphs and the memory that they point at are
// kept for later calls.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <list>
#include <mutex>
#include <optional>

#include "../cuda/decode.h"
#include "../cuda/launch.h"
#include "decoder.h"

namespace lrcn::ops {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

constexpr int64_t kHeaderBytes = 512;
constexpr int64_t kPrepared = 8;                // searches that are kept for later calls on a device
constexpr int64_t kLogits = int64_t{8} << 20;   // of sampling, at a time: 32 MB, which stay in a large L2
constexpr int64_t kMagic = 0x31637564636e726c;  // changes with the layout of cuda::DecodeModel

// The first bytes of a packed decoder, on the GPU like the rest.
struct Header {
  int64_t magic, bytes;
  cuda::DecodeShape shape;
};
static_assert(sizeof(Header) <= kHeaderBytes && kMaxDecoderLayers == cuda::kDecodeLayers);

cuda::Stream current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cuda::Stream>(stream);
}

void copy(void* to, const void* from, size_t bytes, cuda::Stream stream) {
  cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "decode: copy");
}

cuda::DecodeShape cuda_shape(const DecoderShape& s, cuda::Dtype type) {
  cuda::DecodeShape shape{};
  shape.vocab = s.vocab, shape.embed = s.embed, shape.layers = s.layers();
  std::copy(s.hidden.begin(), s.hidden.end(), shape.hidden);
  shape.static_layer = s.static_layer, shape.static_size = s.static_size;
  shape.image_first = s.image_first, shape.table = s.table, shape.type = type;
  return shape;
}

DecoderShape core_shape(const cuda::DecodeShape& s) {
  DecoderShape shape;
  shape.vocab = s.vocab, shape.embed = s.embed;
  shape.hidden.assign(s.hidden, s.hidden + s.layers);
  shape.static_layer = s.static_layer, shape.static_size = s.static_size;
  shape.image_first = s.image_first, shape.table = s.table;
  return shape;
}

cuda::Dtype stored_type(ScalarType dtype) {
  if (dtype == ScalarType::Float) return cuda::Dtype::kFloat32;
  if (dtype == ScalarType::BFloat16) return cuda::Dtype::kBFloat16;
  if (dtype == ScalarType::Half) return cuda::Dtype::kFloat16;
  fail("decode_pack: dtype must be float32, bfloat16 or float16 on CUDA, got ",
       torch::headeronly::toString(dtype));
}

Tensor decode_pack_cuda(const Tensor& embedding, const std::vector<Tensor>& w_ih,
                        const std::vector<Tensor>& w_hh, const std::vector<Tensor>& bias,
                        const Tensor& projection, const std::optional<Tensor>& projection_bias,
                        int64_t static_layer, bool image_first, ScalarType dtype, bool table) {
  DecoderWeights given;
  const DecoderShape shape = check_pack(embedding, w_ih, w_hh, bias, projection, projection_bias,
                                        static_layer, image_first, table, &given);
  Header header{kMagic, 0, cuda_shape(shape, stored_type(dtype))};
  header.bytes = kHeaderBytes + cuda::decode_packed_bytes(header.shape);
  cuda::DecodeWeights weights{};
  weights.embedding = given.embedding;
  std::copy(given.w_ih.begin(), given.w_ih.end(), weights.w_ih);
  std::copy(given.w_hh.begin(), given.w_hh.end(), weights.w_hh);
  std::copy(given.bias.begin(), given.bias.end(), weights.bias);
  weights.projection = given.projection, weights.projection_bias = given.projection_bias;

  const torch::stable::accelerator::DeviceGuard guard(embedding.get_device_index());
  // Zeros, so that equal weights are equal bytes, between the parts too.
  Tensor packed = new_zeros(embedding, {header.bytes}, ScalarType::Byte);
  Tensor scratch = new_empty(embedding, {cuda::decode_pack_bytes(header.shape)}, ScalarType::Byte);
  const cuda::Stream stream = current_stream(embedding);
  uint8_t* const bytes = packed.mutable_data_ptr<uint8_t>();
  copy(bytes, &header, sizeof header, stream);
  cuda::decode_pack(cuda::decode_model(header.shape, bytes + kHeaderBytes), weights,
                    scratch.mutable_data_ptr<uint8_t>(), stream);
  return packed;
}

cuda::DecodeShape open(const Tensor& packed, cuda::Stream stream) {
  Header header{};
  copy(&header, packed.const_data_ptr<uint8_t>(), sizeof header, stream);
  cuda::check(cudaStreamSynchronize(stream), "decode");
  LRCN_CHECK(header.magic == kMagic && header.bytes == packed.numel(),
             "decode: packed must come from decode_pack of this version on CUDA, got ", packed.numel(),
             " other bytes");
  return header.shape;
}

struct Event {
  cudaEvent_t event{};
  Event() { cuda::check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "decode: event"); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

// All that the graph of a segment has in it, but the memory it works in. The members are named one by one, so
// that a new one does not compile before it is here.
std::vector<int64_t> key_of(int64_t device, const void* packed, const cuda::DecodeShape& shape,
                            const cuda::DecodeTask& task) {
  const auto& [vocab, embed, layers, hidden, static_layer, static_size, image_first, table, type] = shape;
  const auto& [images, beams, returned, prefix_length, max_new, min_new, no_repeat_ngram, bos, eos, pad,
               feed_bos, in_slot, greedy, sample, stop, repetition_penalty, longer_is_kinder, logit_scale,
               top_k, top_p, draw_rows] = task;
  std::vector<int64_t> key{device, reinterpret_cast<int64_t>(packed)};
  const auto add = [&](auto... numbers) { (key.push_back(static_cast<int64_t>(numbers)), ...); };
  const auto bits = [](double x) {
    int64_t number = 0;
    std::memcpy(&number, &x, sizeof number);
    return number;
  };
  add(vocab, embed, static_layer, static_size, image_first, table, type, layers);
  key.insert(key.end(), hidden, hidden + layers);
  add(images, beams, returned, prefix_length, max_new, min_new, no_repeat_ngram, bos, eos, pad, feed_bos);
  add(in_slot, greedy, sample, stop, bits(repetition_penalty), longer_is_kinder);
  add(bits(logit_scale), top_k, bits(top_p), draw_rows);
  return key;
}

// A search that can be run again: its memory, and the graph of a segment that points into it.
struct Prepared {
  std::vector<int64_t> key;
  cuda::DecodeBuffers buffers;
  Tensor workspace;
  Tensor finished;  // [2] pinned: DecodeProgress::finished after the latest segments
  Event events[2];  // when `finished` has come
  std::optional<cuda::Graph> segment;

  Prepared(std::vector<int64_t>&& k, const Tensor& packed, const cuda::DecodeShape& shape,
           const cuda::DecodeTask& task)
      : key(std::move(k)),
        workspace(
            new_empty(packed, {cuda::decode_buffers(shape, task, nullptr, &buffers)}, ScalarType::Byte)),
        finished(
            torch::stable::empty({2}, ScalarType::Int, std::nullopt, std::nullopt, /*pin_memory=*/true)) {
    cuda::decode_buffers(shape, task, workspace.mutable_data_ptr<uint8_t>(), &buffers);
  }
};

// The searches that nobody runs. One that runs is taken out, so that no two calls share its memory, and a
// call that finds none prepares another.
class Cache {
 public:
  // A list of one, or of none: members of a list change hands without being copied or moved.
  std::list<Prepared> take(const std::vector<int64_t>& key) {
    std::list<Prepared> found;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto same = [&](const Prepared& prepared) { return prepared.key == key; };
    const auto at = std::find_if(idle_.begin(), idle_.end(), same);
    if (at != idle_.end()) found.splice(found.begin(), idle_, at);
    return found;
  }
  void put(std::list<Prepared>& prepared) {
    std::list<Prepared> dropped;  // destroyed without the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t device = prepared.front().key[0];
    idle_.splice(idle_.begin(), prepared);
    int64_t count = 0;
    for (auto at = idle_.begin(); at != idle_.end();) {
      const auto here = at++;
      if (here->key[0] == device && ++count > kPrepared) dropped.splice(dropped.begin(), idle_, here);
    }
  }

 private:
  std::mutex mutex_;
  std::list<Prepared> idle_;  // the latest first
};

Cache& cache() {
  static Cache* const cache = new Cache;  // never destroyed: when a process ends, CUDA and torch may go first
  return *cache;
}

// A prepared search for the length of one call.
//
// Its memory is a torch tensor: torch counts it, and gives up its own unused memory where there is little.
// The allocator takes it to belong to the stream it was first used on. Yet any stream may take it out of the
// cache, and whoever comes after may be given it when it is freed, because it goes back, or is freed, only
// when the stream has been waited for.
class Borrowed {
 public:
  Borrowed(const Tensor& packed, const cuda::DecodeShape& shape, const cuda::DecodeTask& task,
           cuda::Stream stream)
      : stream_(stream) {
    std::vector<int64_t> key =
        key_of(packed.get_device_index(), packed.const_data_ptr<uint8_t>(), shape, task);
    prepared_ = cache().take(key);
    if (prepared_.empty()) prepared_.emplace_back(std::move(key), packed, shape, task);
  }
  ~Borrowed() {
    if (cudaStreamSynchronize(stream_) == cudaSuccess) cache().put(prepared_);
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Prepared& operator*() { return prepared_.front(); }
  Prepared* operator->() { return &prepared_.front(); }

 private:
  cuda::Stream stream_;
  std::list<Prepared> prepared_;
};

// Enqueues segments until all are, or until the GPU is known to have finished every search.
void run_segments(Prepared& search, const cuda::DecodeModel& model, const cuda::DecodeTask& task,
                  cuda::Stream stream) {
  auto* const finished = static_cast<volatile uint32_t*>(search.finished.mutable_data_ptr());
  for (int64_t i = 0; i < cuda::decode_segments(task); ++i) {
    const int turn = i % 2;
    if (i > 1) {  // of the segment before the last, while the last one runs
      cuda::check(cudaEventSynchronize(search.events[turn].event), "decode");
      if (finished[turn] == static_cast<uint32_t>(task.searches())) break;
    }
    if (!search.segment)
      search.segment.emplace(
          [&](cuda::Stream recorded) { cuda::decode_segment(model, task, search.buffers, recorded); });
    search.segment->launch(stream);
    copy(const_cast<uint32_t*>(finished) + turn, &search.buffers.progress->finished, sizeof(uint32_t),
         stream);
    cuda::check(cudaEventRecord(search.events[turn].event, stream), "decode: event");
  }
}

void check_progress(const cuda::DecodeProgress& progress, const cuda::DecodeShape& shape) {
  LRCN_CHECK(progress.bad_feature == 0, "generate: features must be finite, got ", progress.bad_feature,
             " values that are NaN or infinite");
  LRCN_CHECK(progress.bad_prefix == 0, "generate: prefix_ids must be in 0..", shape.vocab - 1, ", got ",
             progress.bad_prefix, " that are not");
  LRCN_CHECK(progress.not_finite == 0,
             "generate: the model's scores must be finite, got NaN or infinity: its weights are not finite, "
             "or too large");
  LRCN_CHECK(progress.no_word == 0,
             "generate: the rules and the model must leave a word to start with, but every one of the ",
             shape.vocab, " tokens is banned or has probability 0");
}

// What both searches share. `rules` tells what a search has beyond the task's sizes.
struct Search {
  const Tensor& packed;
  const std::optional<Tensor>& features;
  const std::optional<Tensor>& prefix;
  int64_t batch, bos, pad;
  bool feed_bos;
  TokenRules tokens;
  double length_penalty;
  const double* uniforms;  // [B, n, max_new], or nullptr
};

template <typename Rules>
Decoded decode_cuda(const Search& search, int64_t returned, Rules&& rules) {
  const Tensor& packed = search.packed;
  LRCN_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous() &&
                 packed.is_cuda() && packed.numel() >= kHeaderBytes,
             "decode: packed must come from decode_pack on CUDA, got ",
             torch::headeronly::toString(packed.scalar_type()), " ", shape_of(packed));
  const torch::stable::accelerator::DeviceGuard guard(packed.get_device_index());
  const cuda::Stream stream = current_stream(packed);
  const cuda::DecodeShape shape = open(packed, stream);
  const DecoderShape described = core_shape(shape);
  const DecodeInput input = input_of(described, packed, search.features, search.batch, search.prefix,
                                     search.feed_bos, search.bos, search.pad);
  check_decode_options(described, input, search.tokens);

  const TokenRules& tokens = search.tokens;
  cuda::DecodeTask task{};
  task.returned = returned, task.prefix_length = input.prefix_length;
  task.max_new = tokens.max_new, task.min_new = tokens.min_new;
  task.no_repeat_ngram = tokens.no_repeat_ngram, task.repetition_penalty = tokens.repetition_penalty;
  task.bos = input.bos, task.eos = tokens.eos, task.pad = input.pad, task.feed_bos = input.feed_bos;
  task.longer_is_kinder = search.length_penalty > 0;
  rules(task, shape.vocab);
  LRCN_CHECK(input.batch * task.beams <= cuda::kDecodeMostRows, "generate: the images times ",
             task.sample ? "num_return_sequences" : "num_beams", " must be at most ", cuda::kDecodeMostRows,
             " on CUDA, got ", input.batch, " times ", task.beams);
  task.images = cuda::decode_room(input.batch, task.beams);

  DecodeOutput view;
  Decoded out = new_decoded(packed, input.batch, returned, task.longest(), &view);
  if (input.batch == 0) return out;

  // Two tables the kernels read: what sums are divided by, and the words that are never or not yet allowed.
  const int64_t norms = task.longest() + 1, words = (shape.vocab + 31) / 32;
  std::vector<uint32_t> constants(norms + 2 * words);
  for (int64_t length = 0; length < norms; ++length) {
    const bool sums = task.in_slot && !task.greedy && !task.sample;  // compared as they are
    const auto norm =
        sums ? 1.0f : static_cast<float>(std::pow(static_cast<double>(length), search.length_penalty));
    std::memcpy(&constants[length], &norm, sizeof norm);
  }
  const TokenRuleLists lists = token_lists(described, tokens);
  for (int64_t half = 0; half < 2; ++half)
    for (const int32_t word : lists.fixed(half == 0 ? 0 : tokens.max_new).tokens)
      constants[norms + half * words + word / 32] |= 1u << word % 32;

  Borrowed prepared(packed, shape, task, stream);
  const cuda::DecodeBuffers& buffers = prepared->buffers;
  cuda::check(cudaMemsetAsync(prepared->workspace.mutable_data_ptr(), 0,
                              static_cast<size_t>(prepared->workspace.numel()), stream),
              "decode: clear");
  copy(buffers.norms, constants.data(), norms * sizeof(float), stream);
  copy(buffers.banned, constants.data() + norms, 2 * words * sizeof(uint32_t), stream);
  if (task.sample)
    copy(buffers.uniforms, search.uniforms, input.batch * task.beams * task.max_new * sizeof(double), stream);
  // The model is only read: DecodeModel has no const twin, because packing writes through it.
  auto* const bytes = const_cast<uint8_t*>(packed.const_data_ptr<uint8_t>());
  const cuda::DecodeModel model = cuda::decode_model(shape, bytes + kHeaderBytes);
  cuda::decode_begin(model, task, buffers, {input.batch, input.features, input.prefix}, stream);
  run_segments(*prepared, model, task, stream);
  cuda::decode_end(task, buffers, input.batch, {view.sequences, view.lengths, view.scores, view.logprobs},
                   stream);
  cuda::DecodeProgress progress{};
  copy(&progress, buffers.progress, sizeof progress, stream);
  cuda::check(cudaStreamSynchronize(stream), "decode");
  check_progress(progress, shape);
  return out;
}

Decoded decode_beam_cuda(const Tensor& packed, const std::optional<Tensor>& features, int64_t batch,
                         const std::optional<Tensor>& prefix, bool feed_bos, int64_t bos, int64_t eos,
                         int64_t pad, int64_t max_new, int64_t min_new, int64_t no_repeat_ngram,
                         double repetition_penalty, const std::vector<int64_t>& suppress, int64_t num_beams,
                         int64_t num_return, double length_penalty, int64_t early_stopping, bool in_slot) {
  const TokenRules tokens = token_rules(eos, max_new, min_new, no_repeat_ngram, repetition_penalty, suppress);
  const BeamRules rules = beam_rules(num_beams, num_return, length_penalty, early_stopping, in_slot);
  const Search search{packed, features, prefix, batch, bos, pad, feed_bos, tokens, length_penalty, nullptr};
  return decode_cuda(search, num_return, [&](cuda::DecodeTask& task, int64_t /*vocab*/) {
    rules.check(task.longest());
    task.beams = num_beams, task.in_slot = in_slot;
    task.stop = static_cast<cuda::DecodeStop>(early_stopping);
  });
}

Decoded decode_sample_cuda(const Tensor& packed, const std::optional<Tensor>& features, int64_t batch,
                           const std::optional<Tensor>& prefix, bool feed_bos, int64_t bos, int64_t eos,
                           int64_t pad, int64_t max_new, int64_t min_new, int64_t no_repeat_ngram,
                           double repetition_penalty, const std::vector<int64_t>& suppress,
                           const std::optional<Tensor>& uniforms, double length_penalty, double logit_scale,
                           int64_t top_k, double top_p) {
  const SampleRules rules =
      sample_rules(packed, uniforms, batch, max_new, length_penalty, logit_scale, top_k, top_p);
  const TokenRules tokens = token_rules(eos, max_new, min_new, no_repeat_ngram, repetition_penalty, suppress);
  const Search search{packed, features, prefix, batch,          bos,
                      pad,    feed_bos, tokens, length_penalty, rules.uniforms};
  return decode_cuda(search, rules.draws, [&](cuda::DecodeTask& task, int64_t vocab) {
    task.beams = rules.draws, task.in_slot = true, task.greedy = rules.greedy, task.sample = !rules.greedy;
    task.logit_scale = rules.logit_scale, task.top_k = rules.top_k, task.top_p = rules.top_p;
    task.draw_rows = std::max<int64_t>(1, kLogits / (vocab * cuda::kDecodeRows)) * cuda::kDecodeRows;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lrcn_fast, CUDA, m) {
  m.impl("decode_pack", TORCH_BOX(&decode_pack_cuda));
  m.impl("decode_beam", TORCH_BOX(&decode_beam_cuda));
  m.impl("decode_sample", TORCH_BOX(&decode_sample_cuda));
}

}  // namespace lrcn::ops
