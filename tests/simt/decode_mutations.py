"""Bugs planted in the decoding kernels, each with the cases of test_decode_kernels.py that find it."""
# ruff: noqa: E501  (pieces of source are kept on one line)

from simt import Mutation


def _bugs(kernel, file, *bugs, unit=None):
    return [
        (Mutation(kernel, name, file, ((old, new),), message, unit=unit), check)
        for check, name, old, new, message in bugs
    ]


_WRONG = "wrong numbers"
_BOUNDS = "out of bounds|race"
_EITHER = "out of bounds|race|wrong numbers"

DECODE_MUTATIONS = [
    *_bugs(
        "decode_cell_kernel", "decode_step.cu",
        ("plain", "units past the last", "  if (unit >= H) return;\n", "", _BOUNDS),
        ("plain", "all rows stored", "if (!live || gate != 0) return;", "if (gate != 0) return;", _BOUNDS),
        ("plain", "h of the row itself", "(live && cell.parents != nullptr ? cell.parents[row] : row) * stride", "row * stride", _WRONG),
        ("plain", "c of the row itself", "const int64_t parent = cell.parents == nullptr ? row : cell.parents[row];", "const int64_t parent = row;", _WRONG),
        ("plain", "term of another image", "row / rows.per_image", "row / rows.per_image / 2", _WRONG),
        ("vocabulary-64", "bias left out", "if (cell.term != nullptr)", "if (cell.term_rows > 1)", _WRONG),
        ("static-table", "table left out", "if (cell.table != nullptr) z +=", "if (false) z +=", _WRONG),
        ("plain", "gates swapped", "g = shuffle(a, base + 2)", "g = shuffle(a, base + 3)", _WRONG),
        ("plain", "sigmoid for tanh", "gate == 2 ? std::tanh(z)", "gate == 4 ? std::tanh(z)", _WRONG),
        ("plain", "word of the first row", "cell.x_is_word ? rows.tokens[row] : row", "cell.x_is_word ? rows.tokens[first] : row", _EITHER),
    ),
    *_bugs(
        "decode_cell_kernel", "decode_common.cuh",
        ("plain", "rows past the last", "return row < rows.count && (", "return (", _BOUNDS),
        ("vocabulary-65", "numbers taken twice", "k += 128", "k += 64", _WRONG),
        unit="decode_step.cu",
    ),
    *_bugs(
        "decode_linear_kernel", "decode_step.cu",
        ("greedy", "columns past the last", "  if (column >= N) return;\n", "", _BOUNDS),
        ("plain", "rows past the last", "  if (row < rows) out", "  out", _BOUNDS),
        ("plain", "rows read past the last", "x + (first + r < rows ? first + r : 0) * K", "x + (first + r) * K", _BOUNDS),
        ("plain", "bias left out", "bias == nullptr ? 0.0f : bias[n]", "0.0f", _WRONG),
    ),
    *_bugs(
        "decode_pad_kernel", "decode_step.cu",
        ("plain", "elements past the last", "  if (at >= rows * padded) return;\n", "", _BOUNDS),
        ("plain", "columns past the last", " && column < columns ?", " ?", _EITHER),
        ("vocabulary-65", "no bias", "from != nullptr && ", "", _BOUNDS),
    ),
    *_bugs(
        "decode_scores_kernel", "decode_scores.cu",
        ("plain", "sync_block removed", "  sync_block();  // all logits are there\n", "", "race|nobody has written"),
        ("rules", "sync_warp before reports removed", "  sync_warp();  // what is banned anyway reports no logit\n", "", "race|nobody has written"),
        ("rules", "sync_warp before ranks removed", "  sync_warp();  // the words that compete are settled\n", "", "race"),
        ("vocabulary-65", "weights past the last word", "(word < args.V ? word : 0) * args.size", "word * args.size", _BOUNDS),
        ("vocabulary-65", "bias past the last word", "first_word + column < args.V ?", "true ?", _BOUNDS),
        ("plain", "bans past the last word", "word < args.V && (args.banned", "(args.banned", _BOUNDS),
        ("rules", "reports of earlier parts", "column < 0 || column >= kDecodePart", "column >= kDecodePart", _EITHER),
        ("rules", "reports of later parts", "column < 0 || column >= kDecodePart", "column < 0", _EITHER),
        ("wanted-repetition", "penalised words compete too", "    logit[column] = minus_infinity();\n", "", _WRONG),
        ("twins", "ties to nobody", "(other == mine[i] && j < static_cast<int>(lane) + 32 * i)", "false", _EITHER),
        ("plain", "more than kept", "    if (before[i] < args.kept)\n", "", _BOUNDS),
        ("complaints", "NaN competes", "|| !(mine[i] == mine[i])", "", "race"),
        ("rules", "min_new not seen", "(t < task.min_new ? 0 : words)", "words", _WRONG),
        ("vocabulary-64", "sum without its maximum", "std::exp(mine[1] - max)", "std::exp(mine[1])", _WRONG),
    ),
    *_bugs(
        "decode_scores_kernel", "decode_common.cuh",
        ("plain", "halves not swapped", "give = upper ? value[i] : value[i + kHalf]", "give = value[i]", _WRONG),
        unit="decode_scores.cu",  # the first to be linked of those that have it
    ),
    *_bugs(
        "decode_merge_kernel", "decode_scores.cu",
        ("vocabulary-65", "sums of different maxima", "std::exp(static_cast<double>(args.max[row * args.parts + p]) - max)", "1.0", _WRONG),
        ("complaints", "not finite and not said", "if (!is_finite(max) || !is_finite(log_sum))", "if (false)", _WRONG),
        ("plain", "lists end", "      if (cursor[p] >= args.kept) continue;\n", "", _EITHER),
        ("plain", "the same word again", "      ++cursor[best_part];\n", "", _WRONG),
        ("wanted-repetition", "words that are none", "if (word < 0 || word == kNoWord) continue;", "if (word < 0) continue;", _EITHER),
        ("out-of-words", "banned words", "if (word < 0 || word == kNoWord) continue;", "if (word == kNoWord) continue;", _EITHER),
        ("nearly-ties", "order of words with one sum", "before.token < token", "true", _WRONG),
        ("plain", "sum of another slot", "* args.beams + row % rows.per_image].sum", "* args.beams].sum", _WRONG),
        ("greedy-repetition", "greedy by log p", "const float x = penalised(logit);", "const float x = penalised(log_p(logit)) + max + log_sum;", _WRONG),
        ("greedy-repetition", "greedy reports the penalised logit", "greedy_score = x, greedy_logit = logit,", "greedy_score = x, greedy_logit = x,", _WRONG),
        ("wanted-repetition", "list too long", "int64_t at = count_ < most_ ? count_++ : most_;", "int64_t at = count_++;", _EITHER),
    ),
    *_bugs(
        "decode_start_kernel", "decode_beam.cu",
        ("complaints", "features not checked", "if (!is_finite(x)) add_relaxed", "if (false) add_relaxed", _WRONG),
        ("complaints", "prefix not checked below", "word >= 0 && word < args.vocab", "word < args.vocab", _EITHER),
        ("complaints", "prefix not checked above", "word >= 0 && word < args.vocab", "word >= 0", _EITHER),
        ("plain", "no root", "args.state[image] = {0, 0, 1, 0};", "args.state[image] = {0, 0, 0, 0};", _WRONG),
    ),
    *_bugs(
        "decode_beam_kernel", "decode_beam.cu",
        ("plain", "sync_warp removed", "  sync_warp();  // lane 0 has written", "  // lane 0 has written", "race"),
        ("everything-ties", "newcomers before their equals", "pool[at - 1].score < score; --at", "pool[at - 1].score <= score; --at", _WRONG),
        ("plain", "pool overflows when it shifts", "    if (at < most) pool[at] = pool[at - 1];", "    pool[at] = pool[at - 1];", _BOUNDS),
        ("plain", "pool overflows", "  if (at < most) pool[at] = {node, score};", "  pool[at] = {node, score};", _BOUNDS),
        ("out-of-words", "stuck hypotheses forgotten", "} else if (!args.in_slot) {", "} else if (false) {", _WRONG),
        ("out-of-words-caffe", "stuck hypotheses leave their slot", "(now[s].ended != 0 || args.list_count[first_row + s] == 0)", "(now[s].ended != 0)", _WRONG),
        ("complaints", "no word and not said", "if (length == 1) {", "if (length == 0) {", _WRONG),
        ("plain", "all that end enter the pool", "(ends ? rank >= K : kept == K)", "(ends ? false : kept == K)", _EITHER),
        ("plain", "more than K go on", "(ends ? rank >= K : kept == K)", "(ends ? rank >= K : false)", _EITHER),
        ("stop-when-hopeless", "score of the length before", "const float now = best / args.norms[length];", "const float now = best / args.norms[length - 1];", _WRONG),
        ("never-stop", "never is sometimes", "args.stop == DecodeStop::kNever ? bound : now", "now", _WRONG),
        ("stop-when-full", "full pool not seen", "if (args.stop == DecodeStop::kWhenFull) return true;", "", _WRONG),
        ("plain", "done not counted", "  if (done) add_relaxed", "  if (false) add_relaxed", _WRONG),
        ("plain", "parents of the first image", "static_cast<int32_t>(first_row + s), ends, sum}", "s, ends, sum}", _WRONG),
        ("caffe", "slots of the step before", "static_cast<int32_t>((t + 1) % 2), static_cast<int32_t>(kept)", "static_cast<int32_t>(t % 2), static_cast<int32_t>(kept)", _EITHER),
        ("caffe", "ended ones go on", "static_cast<int32_t>(first_row + s), ends, sum}", "static_cast<int32_t>(first_row + s), false, sum}", _EITHER),
        ("plain", "heads not advanced", "      ++cursor[s];\n", "", _WRONG),
        ("more-beams-than-words fewer-captions-than-beams", "lists have no end", "static_cast<uint32_t>(args.list_count[first_row + s]))) continue;", "99u)) continue;", _EITHER),
    ),
    *_bugs(
        "decode_history_kernel", "decode_beam.cu",
        ("rules", "sync_warp removed", "  sync_warp();  // all words are there\n", "", "race"),
        ("greedy-repetition wanted-repetition", "prefix of the first image", "words[i] = args.fed[(1 + i) * args.images + image];", "words[i] = args.fed[(1 + i) * args.images];", _WRONG),
        ("wanted-repetition", "words listed twice", "listed = listed || j < i;", "", _EITHER),
        ("rules caffe", "n-gram one too short", "same && m < n; ++m", "same && m + 1 < n; ++m", _WRONG),
        ("caffe", "before the first word", "n > 0 && j + 1 >= n;", "n > 0;", _EITHER),
    ),
    *_bugs(
        "decode_end_kernel", "decode_beam.cu",
        ("rules", "prefix of the first image", "args.fed[(1 + i) * args.images + image] : args.pad", "args.fed[(1 + i) * args.images] : args.pad", _WRONG),
        ("plain", "no padding", "if (i >= P && i < length) continue;  // written below", "if (i >= P) continue;", _WRONG),
        ("fewer-captions-than-beams", "hypotheses that are none", "rank < (args.in_slot ? state.slots : state.pooled)", "rank < args.beams", _EITHER),
        ("greedy-rules", "sum for score", "slots[rank].sum / args.norms[length]", "slots[rank].sum", _WRONG),
    ),
]  # fmt: skip
