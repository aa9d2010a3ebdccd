// A caption decoder over numpy arrays: the same core as the torch ops, so the same captions.
#include <optional>

#include "../core/decoder_search.h"
#include "../core/memory.h"
#include "arrays.h"

namespace lrcn::runtime {
namespace {

// Immutable once made: any number of threads may decode with it at once.
class Decoder {
 public:
  Decoder(const py::object& embedding, const std::vector<py::object>& w_ih,
          const std::vector<py::object>& w_hh, const std::vector<py::object>& bias,
          const py::object& projection, const py::object& projection_bias, int64_t static_layer,
          bool image_first, const py::object& dtype, int64_t table_limit, const py::object& threads)
      : parallel_(threads_of("Decoder", threads)) {
    LRCN_CHECK(w_ih.size() == w_hh.size() && bias.size() == w_hh.size(),
               "Decoder: w_ih, w_hh and bias must hold one array per layer, got ", w_ih.size(), ", ",
               w_hh.size(), " and ", bias.size());
    DecoderShape shape;
    shape.vocab = size_of("Decoder: embedding [V, E]", embedding, 2, 0);
    shape.embed = size_of("Decoder: embedding [V, E]", embedding, 2, 1);
    shape.static_layer = static_layer, shape.image_first = image_first,
    shape.type = weight_type("Decoder", dtype);
    DecoderWeights weights;
    weights.embedding = elements<float>("Decoder: embedding [V, E]", embedding, {shape.vocab, shape.embed});
    for (size_t l = 0; l < w_hh.size(); ++l) {
      const std::string of = "[" + std::to_string(l) + "]";
      const int64_t H = size_of("Decoder: w_hh" + of + " [4H, H]", w_hh[l], 2, 1);
      shape.hidden.push_back(H);
      const int64_t layer = static_cast<int64_t>(l);
      int64_t input = shape.input(layer);
      if (layer == static_layer) {
        shape.static_size = size_of("Decoder: w_ih" + of + " [4H, input + F]", w_ih[l], 2, 1) - input;
        input += shape.static_size;
      }
      weights.w_hh.push_back(elements<float>("Decoder: w_hh" + of + " [4H, H]", w_hh[l], {4 * H, H}));
      weights.w_ih.push_back(elements<float>("Decoder: w_ih" + of + " [4H, input]", w_ih[l], {4 * H, input}));
      weights.bias.push_back(
          bias[l].is_none() ? nullptr : elements<float>("Decoder: bias" + of + " [4H]", bias[l], {4 * H}));
    }
    LRCN_CHECK(!shape.hidden.empty(), "Decoder: w_hh must hold at least one layer, got none");
    weights.projection =
        elements<float>("Decoder: projection [V, H]", projection, {shape.vocab, shape.hidden.back()});
    weights.projection_bias = projection_bias.is_none() ? nullptr
                                                        : elements<float>("Decoder: projection_bias [V]",
                                                                          projection_bias, {shape.vocab});
    shape.table = shape.table_bytes() <= table_limit;
    const int64_t bytes = decoder_packed_bytes(shape);
    packed_ = allocate_packed(bytes);
    decoder_pack(shape, weights, packed_.get(), parallel_);
    decoder_.emplace(packed_.get(), bytes);
  }

  py::tuple beam(const py::object& features, int64_t batch, const py::object& prefix, bool feed_bos,
                 int64_t bos, int64_t eos, int64_t pad, int64_t max_new, int64_t min_new,
                 int64_t no_repeat_ngram, double repetition_penalty, const std::vector<int64_t>& suppress,
                 int64_t num_beams, int64_t num_return, double length_penalty, int64_t early_stopping,
                 bool in_slot) const {
    const Inputs inputs(*decoder_, features, batch, prefix, feed_bos, bos, pad);
    const TokenRules tokens =
        token_rules(eos, max_new, min_new, no_repeat_ngram, repetition_penalty, suppress);
    LRCN_CHECK(early_stopping >= 0 && early_stopping <= 2,
               "Decoder.beam: early_stopping must be 0 (False), 1 (True) or 2 (never), got ", early_stopping);
    BeamRules rules;
    rules.beams = num_beams, rules.returned = num_return, rules.length_penalty = length_penalty;
    rules.early_stopping = static_cast<EarlyStopping>(early_stopping);
    rules.ended = in_slot ? Ended::kInSlot : Ended::kPool;
    check_decode(*decoder_, inputs.view, tokens);
    rules.check(inputs.view.prefix_length + max_new);
    Outputs out(batch, num_return, inputs.view.prefix_length + max_new);
    {
      const py::gil_scoped_release release;
      decode_beam(*decoder_, inputs.view, rules, tokens, out.view, parallel_);
    }
    return out.arrays;
  }

  py::tuple sample(const py::object& features, int64_t batch, const py::object& prefix, bool feed_bos,
                   int64_t bos, int64_t eos, int64_t pad, int64_t max_new, int64_t min_new,
                   int64_t no_repeat_ngram, double repetition_penalty, const std::vector<int64_t>& suppress,
                   const py::object& uniforms, double length_penalty, double logit_scale, int64_t top_k,
                   double top_p) const {
    const Inputs inputs(*decoder_, features, batch, prefix, feed_bos, bos, pad);
    const TokenRules tokens =
        token_rules(eos, max_new, min_new, no_repeat_ngram, repetition_penalty, suppress);
    SampleRules rules;
    rules.greedy = uniforms.is_none(), rules.length_penalty = length_penalty;
    rules.logit_scale = static_cast<float>(logit_scale), rules.top_k = top_k, rules.top_p = top_p;
    check_decode(*decoder_, inputs.view, tokens);
    std::vector<double> numbers;
    if (!uniforms.is_none()) {
      const char* what = "Decoder.sample: uniforms [B, n, max_new]";
      rules.draws = size_of(what, uniforms, 3, 1);
      const double* from = elements<double>(what, uniforms, {batch, rules.draws, max_new});
      numbers.assign(from, from + batch * rules.draws * max_new);
      rules.uniforms = numbers.data();
    }
    rules.check();
    Outputs out(batch, rules.draws, inputs.view.prefix_length + max_new);
    {
      const py::gil_scoped_release release;
      decode_sample(*decoder_, inputs.view, rules, tokens, out.view, parallel_);
    }
    return out.arrays;
  }

  int64_t vocab() const { return decoder_->shape().vocab; }
  int64_t features() const { return decoder_->shape().features(); }

 private:
  // Arguments, copied while the GIL keeps other threads from writing to them.
  struct Inputs {
    DecodeInput view;
    std::vector<float> features;
    std::vector<int64_t> prefix;

    Inputs(const PackedDecoder& decoder, const py::object& from, int64_t batch, const py::object& words,
           bool feed_bos, int64_t bos, int64_t pad) {
      view.batch = batch, view.feed_bos = feed_bos, view.bos = bos, view.pad = pad;
      if (!from.is_none()) {
        const int64_t F = decoder.shape().features();
        LRCN_CHECK(F > 0, "generate: features must be None for a decoder without an image");
        const float* data = elements<float>("generate: features [B, F]", from, {batch, F});
        features.assign(data, data + batch * F);
        view.features = features.data();
      }
      if (!words.is_none()) {
        view.prefix_length = size_of("generate: prefix_ids [B, P]", words, 2, 1);
        const int64_t* data =
            elements<int64_t>("generate: prefix_ids [B, P]", words, {batch, view.prefix_length});
        prefix.assign(data, data + batch * view.prefix_length);
        view.prefix = prefix.data();
      }
    }
  };

  // Fresh arrays, which no other thread knows yet.
  struct Outputs {
    py::tuple arrays;
    DecodeOutput view{};

    Outputs(int64_t batch, int64_t n, int64_t longest) {
      py::array_t<int64_t> sequences({batch, n, longest}), lengths({batch, n});
      py::array_t<float> scores({batch, n}), logprobs({batch, n, longest});
      view = {sequences.mutable_data(), lengths.mutable_data(), scores.mutable_data(),
              logprobs.mutable_data()};
      arrays = py::make_tuple(sequences, lengths, scores, logprobs);
    }
  };

  static TokenRules token_rules(int64_t eos, int64_t max_new, int64_t min_new, int64_t no_repeat_ngram,
                                double repetition_penalty, const std::vector<int64_t>& suppress) {
    TokenRules rules;
    rules.eos = eos, rules.max_new = max_new, rules.min_new = min_new,
    rules.no_repeat_ngram = no_repeat_ngram;
    rules.repetition_penalty = static_cast<float>(repetition_penalty);
    rules.suppress = suppress;
    return rules;
  }

  Parallel parallel_;
  PackedBuffer packed_;
  std::optional<PackedDecoder> decoder_;
};

}  // namespace

void bind_decoder(py::module_& m) {
  using namespace py::literals;
  py::class_<Decoder>(m, "Decoder", "The engine of lrcn_fast.runtime.Decoder; arguments are described there.")
      .def(py::init<const py::object&, const std::vector<py::object>&, const std::vector<py::object>&,
                    const std::vector<py::object>&, const py::object&, const py::object&, int64_t, bool,
                    const py::object&, int64_t, const py::object&>(),
           "embedding"_a, "w_ih"_a, "w_hh"_a, "bias"_a, "projection"_a, "projection_bias"_a, py::kw_only(),
           "static_layer"_a, "image_first"_a, "dtype"_a, "table_limit"_a, "threads"_a)
      .def("beam", &Decoder::beam, "features"_a, py::kw_only(), "batch"_a, "prefix"_a, "feed_bos"_a, "bos"_a,
           "eos"_a, "pad"_a, "max_new"_a, "min_new"_a, "no_repeat_ngram"_a, "repetition_penalty"_a,
           "suppress"_a, "num_beams"_a, "num_return"_a, "length_penalty"_a, "early_stopping"_a, "in_slot"_a,
           "Beam search -> (sequences, lengths, scores, token_logprobs).")
      .def("sample", &Decoder::sample, "features"_a, py::kw_only(), "batch"_a, "prefix"_a, "feed_bos"_a,
           "bos"_a, "eos"_a, "pad"_a, "max_new"_a, "min_new"_a, "no_repeat_ngram"_a, "repetition_penalty"_a,
           "suppress"_a, "uniforms"_a, "length_penalty"_a, "logit_scale"_a, "top_k"_a, "top_p"_a,
           "Sampling, or greedy search where uniforms is None -> as beam.")
      .def_property_readonly("vocab_size", &Decoder::vocab, "V.")
      .def_property_readonly("feature_dim", &Decoder::features, "Columns of features; 0 without an image.");
}

}  // namespace lrcn::runtime
