"""Bugs planted in the kernels, to see that the tests find them."""
# ruff: noqa: E501  (pieces of source are kept on one line)

from decode_mutations import DECODE_MUTATIONS
from simt import Mutation


def _bugs(kernel, file, *bugs, unit=None):
    return [
        Mutation(kernel, name, file, ((old, new),), *message, unit=unit) for name, old, new, *message in bugs
    ]


def _cell(kernel, *bugs):
    return _bugs(kernel, "lstm_cell.cu", *bugs)


_BOUNDS = "out of bounds|race"

LSTM_MUTATIONS = [
    *_cell(
        "lstm_cell_kernel",
        ("bounds check removed", "  if (j >= H) return;\n  const int64_t at = b * H + j, step_at = t * rows.B * H + at;\n"
         "  const int64_t gate = b * 4 * H + j, step_gate = t * rows.B * 4 * H + gate;\n  T* const h",
         "  const int64_t at = b * H + j, step_at = t * rows.B * H + at;\n"
         "  const int64_t gate = b * 4 * H + j, step_gate = t * rows.B * 4 * H + gate;\n  T* const h", _BOUNDS),
        ("one thread too few", "return {block_index() / blocks, int64_t{block_index() % blocks} * kThreads + thread_index()};",
         "return {block_index() / blocks, int64_t{block_index() % blocks} * kThreads + thread_index() + 1};"),
        ("padded rows not skipped", "  if (t >= length) {\n    put(*h, A(0));", "  if (t > length) {\n    put(*h, A(0));"),
        ("h of padded rows left out", "    put(*h, A(0));\n", ""),
        ("c of padded rows left out", "    put(*c, A(0));\n", ""),
        ("first step of reverse", "  const bool first = is_first(rows, t, length);\n  A z[4]",
         "  const bool first = t == (rows.reverse ? rows.T - 1 : 0);\n  A z[4]"),
        ("h0 taken at every step", "static_cast<const A*>(first ? cell.z_first : cell.recurrent)",
         "static_cast<const A*>(cell.z_first)"),
        ("c0 ignored", "c_prev = first ? widen(static_cast<const T*>(cell.c0)[at]) :", "c_prev = first ? A(0) :"),
        ("state not kept", "  static_cast<A*>(cell.c_state)[at] = c_new;\n", ""),
        ("gates swapped", "    put(gates[H], f);\n    put(gates[2 * H], g);", "    put(gates[H], g);\n    put(gates[2 * H], f);"),
        ("sigmoid for tanh", "g = std::tanh(z[2])", "g = sigmoid(z[2])"),
    ),
    *_cell(
        "lstm_cell_backward_kernel",
        ("d_c0 of empty rows left out", "      put(*d_c0, A(0));\n", ""),
        ("d_first of empty rows left out", "        for (int k = 0; k < 4; ++k) put(d_first[k * H], A(0));\n    }", ";\n    }"),
        ("d_xg of padded rows left out", "    for (int k = 0; k < 4; ++k) put(d_xg[k * H], A(0));\n", ""),
        ("first step of reverse", "  const bool first = is_first(rows, t, length);\n  const bool keeps",
         "  const bool first = t == (rows.reverse ? rows.T - 1 : 0);\n  const bool keeps"),
        ("reset lets d_h through", "if (cell.d_h != nullptr && keeps_state(rows, later(rows, t), b))", "if (cell.d_h != nullptr)"),
        ("reset of this step for that of the later", "if (cell.d_h != nullptr && keeps_state(rows, later(rows, t), b))",
         "if (cell.d_h != nullptr && keeps)"),
        ("reset lets d_c through", "const A d_c_prev = keeps ? x.d_c * x.gates[1] : A(0);", "const A d_c_prev = x.d_c * x.gates[1];"),
        ("reset lets d_h0 through", "put(d_first[k * H], keeps ? d_z[k] : A(0));", "put(d_first[k * H], d_z[k]);"),
        ("c_prev of the wrong side", "(rows.reverse ? 1 : -1) * rows.B * H", "(rows.reverse ? -1 : 1) * rows.B * H"),
        ("c_prev of a reset", "  if (keeps)\n    x.c_prev =", "  x.c_prev ="),
        ("carry not added", "    x.d_c += static_cast<const A*>(cell.carry)[at];\n", ""),
        ("d_gates of f left out", "if (cell.d_gates != nullptr) x.d_gates", "if (cell.d_gates != nullptr && k != 1) x.d_gates"),
    ),
    *_bugs(
        "lstm_cell_kernel", "lstm_common.cuh",
        ("lengths not clamped above", "length < rows.T ? length : rows.T", "length"),
        ("lengths not clamped below", "length < 0 ? 0 : length < rows.T", "length < rows.T"),
        ("cont of another row", "rows.cont[t * rows.B + b] != 0", "rows.cont[t * rows.B] != 0"),
        unit="lstm_cell.cu",
    ),
    *_bugs(
        "lstm_cell_backward_kernel", "lstm_common.cuh",
        ("carry from the padding", "return rows.reverse ? t > 0 : t + 1 < length;", "return rows.reverse ? t > 0 : t + 1 < rows.T;"),
        ("tanh' for sigmoid'", "+ d_gates[1]) * f * (A(1) - f)", "+ d_gates[1]) * (A(1) - f * f)"),
        unit="lstm_cell.cu",
    ),
    *_cell(
        "lstm_projection_backward_kernel",
        ("bounds check removed", "  if (j >= P) return;\n", "", _BOUNDS),
        ("padded rows not zeroed", "  if (t < length) {\n    sum", "  {\n    sum"),
        ("reset lets it through", "if (has_later(rows, t, length) && keeps_state(rows, later(rows, t), b)) sum",
         "if (has_later(rows, t, length)) sum"),
        ("recurrent left out", " sum += recurrent[at];", ";"),
    ),
    *_bugs(
        "lstm_grid_kernel", "lstm_grid.cu",
        ("sync_block removed", "      sync_block();  // all sums", "      // all sums", "race|nobody has written"),
        ("one buffer of sums", "state.partial[n % 2][tile][warp];", "state.partial[0][tile][warp];", "race|nobody has written|wrong numbers"),
        ("phase never changes", "(n - 1) / 2 % 2 == 0 ? kPhaseBit : 0;", "kPhaseBit;", "stall|wrong numbers"),
        ("phase not checked", "while ((piece.word[0] & kPhaseBit) != phase)", "while (false)", "wrong numbers"),
        ("one buffer of h", "((n - 1) % 2 * rows.B + first_row)", "first_row", "stall|wrong numbers"),
        ("pieces past the last", " && (warp * kPairs + p) * 4 + q < pieces", "", "out of bounds|stall"),
        ("rows past the last", "tile * kTileRows + g < count && ", "", "out of bounds|stall"),
        ("rows past the last in a cell", "      if (tile * kTileRows + warp >= count) break;\n", "", "out of bounds|race"),
        ("units past the last", "const bool has_unit = unit < H;", "const bool has_unit = true;", "out of bounds|race"),
        ("not published by one block", "if (lane == 0 && n + 1 < rows.T)", "if (lane == 0 && n + 1 < rows.T && block_index() > 0)", "stall"),
        ("NaN not passed on", "(nan != 0 ? kNanBit : 0)", "0u", "wrong numbers"),
        ("first step not seen", "if (keeps[tile] && !first)", "if (keeps[tile])", "nobody has written|wrong numbers"),
        ("reset keeps c", "(keeps[tile] ? cell[tile] : 0.0f)", "cell[tile]", "wrong numbers"),
        ("tensors of the first direction", "sequences.of[direction];", "sequences.of[0];", "wrong numbers|race|nobody has written"),
        ("directions take turns", "direction = block_index_y() / groups;", "direction = block_index_y() % groups;", "wrong numbers|race|out of bounds|stall"),
        ("rows past those of a group", "block_index_y() % groups * group_rows", "block_index_y() * group_rows", "wrong numbers|race|out of bounds"),
        ("one exchange for both", "exchanges + direction * 2 * rows.B * pieces", "exchanges", "wrong numbers|race|stall"),
    ),
    *_bugs(
        "lstm_grid_kernel", "lstm_mma.cuh",
        ("both directions alike", "if (direction == 1) rows.reverse", "if (direction == 2) rows.reverse", "wrong numbers"),
        unit="lstm_grid.cu",
    ),
    *_bugs(
        "lstm_grid_kernel", "lstm_mma.cuh",
        ("weights of k + 8 twice", "4 * s + 2 * (i / 2);", "4 * s;", "wrong numbers"),
        ("gates of the tiles swapped", "const int gate = 2 * m + i % 2,", "const int gate = 2 * (1 - m) + i % 2,", "wrong numbers"),
        ("units past the last have weights", "const float low = unit < H && k < H ?", "const float low = k < H ?", "out of bounds"),
        unit="lstm_grid.cu",
    ),
    *_bugs(
        "lstm_grid_backward_kernel", "lstm_grid_backward.cu",
        ("sync_block for the sums removed", "      sync_block();  // all sums", "      // all sums", "race|nobody has written"),
        ("sync_block before done removed", "    sync_block();  // the block's d_z", "    // the block's d_z", "race"),
        ("done is not a release", "store_release(done", "store_relaxed(done", "race"),
        ("wait is not an acquire", "load_acquire(done", "load_relaxed(done", "race"),
        ("sync_warp removed", "      sync_warp();  // d_z of", "      // d_z of", "race"),
        ("one step too early", "< static_cast<uint32_t>(n)) pause", "< static_cast<uint32_t>(n - 1)) pause", "race"),
        ("pause missing", "(n)) pause();", "(n)) {}", "without pause"),
        ("done missing in one block", "if (thread_index() == 0) store_release", "if (thread_index() == 0 && block_index() > 0) store_release", "stall"),
        ("producers past the last", "exists = first_producer + p / 2 * 2 + q % 2 < blocks;", "exists = true;", "out of bounds|race"),
        ("rows past the last", "exists && has_high ?", "exists ?", "out of bounds|race"),
        ("reset lets d_h through", "    if (cell.next_keeps)\n", "    if (cell.has_next)\n", "wrong numbers|nobody has written"),
        ("operand rows swapped", "{low.word[2 * s], high.word[2 * s],", "{high.word[2 * s], low.word[2 * s],", "wrong numbers"),
        ("tensors of the first direction", "sequences.of[direction];", "sequences.of[0];", "wrong numbers|race|nobody has written"),
        ("directions take turns", "direction = block_index_y() / groups;", "direction = block_index_y() % groups;", "wrong numbers|race|out of bounds|stall"),
        ("rows past those of a group", "block_index_y() % groups * group_rows", "block_index_y() * group_rows", "wrong numbers|race|out of bounds"),
        ("one done for both", "all_done + block_index_y() * blocks", "all_done + block_index_y() % groups * blocks", "wrong numbers|race|stall"),
    ),
    *_bugs(
        "lstm_grid_backward_kernel", "lstm_mma.cuh",
        ("both directions alike", "if (direction == 1) rows.reverse", "if (direction == 2) rows.reverse", "wrong numbers"),
        unit="lstm_grid_backward.cu",
    ),
    *_bugs(
        "lstm_cluster_kernel", "lstm_cluster.cu",
        ("block not ready before its first step", "  if constexpr (kAlone) {\n    sync_block();\n", "  if constexpr (kAlone) {\n", "race|nobody has written"),
        ("peers not ready before the first step", "    sync_cluster();  // nobody stores", "    // nobody stores", "race|before mbarrier_init|nobody has written"),
        ("sync_block for h removed", "        sync_block();  // all of h", "        // all of h", "race"),
        ("wait for h removed", "        mbarrier_wait(&full[buffer], (n - 1) / 2 % 2);\n", "", "race|more bytes|more arrivals"),
        ("parity never changes", "mbarrier_wait(&full[buffer], (n - 1) / 2 % 2);", "mbarrier_wait(&full[buffer], 0);", "race|more bytes|more arrivals"),
        ("not armed again", "        if (thread_index() == 0) mbarrier_arrive_expect(&full[buffer], state_bytes);  // of", "        // of", "stall|more bytes|returned"),
        ("fewer bytes expected", "const unsigned state_bytes = kRows *", "const unsigned state_bytes = kRows / 2 *", "race|more bytes|more arrivals"),
        ("one block left out", "for (int rank = 0; rank < blocks; ++rank)", "for (int rank = 1; rank < blocks; ++rank)", "stall"),
        ("sync_block for the sums removed", "        sync_block();  // all sums", "        // all sums", "race|nobody has written"),
        ("a part left out", "p < shape.parts - 1; ++p)", "p < shape.parts - 2; ++p)", "wrong numbers"),
        ("one buffer of h", "states + n % 2 * shape.h_bytes, shape, unit", "states, shape, unit", "race|wrong numbers|nobody has written"),
        ("padding of h not zeroed", "i < 2 * shape.h_bytes / 4;", "i < 0;", "nobody has written|wrong numbers"),
        ("rows past the last", "mine[r] = part == 0 && first_row + r < rows.B && unit < H;", "mine[r] = part == 0 && unit < H;", "out of bounds|race"),
        ("units past the last", "mine[r] = part == 0 && first_row + r < rows.B && unit < H;", "mine[r] = part == 0 && first_row + r < rows.B;", "out of bounds|race|wrong numbers"),
        ("weights past the last unit", "= unit < H ? w_hh[(gate * H + unit) * H + k] : 0.0f;", "= w_hh[(gate * H + unit) * H + k];", "out of bounds"),
        ("k past the last", "last = end < H ? end : static_cast<int>(H);", "last = end;", "out of bounds|race|nobody has written|wrong numbers"),
        ("weights of the first part everywhere", "weights.load(args.w_hh, H, first_unit, part * s.pairs * 32);", "weights.load(args.w_hh, H, first_unit, 0);", "wrong numbers"),
        ("rows swapped in a word", "odd ? pack<T>(other, h[1]) : pack<T>(h[0], other);", "odd ? pack<T>(h[1], other) : pack<T>(other, h[0]);", "wrong numbers"),
        ("first step not seen", "is_first(rows, t, length[r])", "false", "wrong numbers"),
        ("reset keeps c", "gates[r][1] * (keeps ? cell[r] : 0.0f)", "gates[r][1] * cell[r]", "wrong numbers"),
        ("reset keeps h", "const bool keeps = active && keeps_state(rows, t, first_row + r);", "const bool keeps = active;", "wrong numbers"),
        ("h of the padding", "h[r] = 0.0f;", "h[r] = gates[r][3];", "wrong numbers"),
        ("c of the padding", "active ? cell[r] : 0.0f);", "cell[r]);", "wrong numbers"),
        ("tensors of the first direction", "sequences.of[block_index_y()];", "sequences.of[0];", "wrong numbers|race|nobody has written"),
        ("both directions alike", "rows_in(all_rows, block_index_y());", "rows_in(all_rows, 0);", "wrong numbers"),
        ("second direction not launched", "static_cast<unsigned>(sequences.count)};", "1u};", "wrong numbers"),
    ),
    *_bugs(
        "lstm_cluster_backward_kernel", "lstm_cluster_backward.cu",
        ("peers not ready before the first step", "  sync_cluster();  // nobody stores", "  // nobody stores", "race|before mbarrier_init|nobody has written"),
        ("wait for d_z removed", "      mbarrier_wait(&full[buffer], (n - 1) / 2 % 2);\n", "", "race|more bytes|more arrivals|nobody has written"),
        ("parity never changes", "mbarrier_wait(&full[buffer], (n - 1) / 2 % 2);", "mbarrier_wait(&full[buffer], 0);", "race|more bytes|more arrivals|nobody has written"),
        ("not armed again", "      if (thread_index() == 0) mbarrier_arrive_expect(&full[buffer], d_bytes);  // of", "      // of", "stall|more bytes|returned"),
        ("fewer bytes expected", "const unsigned d_bytes = kRows *", "const unsigned d_bytes = kRows / 2 *", "race|more bytes|more arrivals"),
        ("one block left out", "for (int rank = 0; rank < blocks; ++rank)", "for (int rank = 1; rank < blocks; ++rank)", "stall"),
        ("sync_block for the sums removed", "      sync_block();  // all sums", "      // all sums", "race|nobody has written"),
        ("one buffer of d_z", "buffers + n % 2 * shape.d_bytes)", "buffers)", "race|wrong numbers|nobody has written"),
        ("warps without a part", "      if (part < shape.parts) {", "      {", "out of bounds|race|nobody has written|wrong numbers"),
        ("threads without a row", "n + 1 < rows.T && my_row < kRows)", "n + 1 < rows.T)", "out of bounds|race|more bytes"),
        ("rows past the last", "my_row < kRows && row < rows.B && unit < H", "my_row < kRows && unit < H", "out of bounds|race"),
        ("units past the last", "my_row < kRows && row < rows.B && unit < H", "my_row < kRows && row < rows.B", "out of bounds|race"),
        ("columns past the last", "const bool exists = column + right < H;", "const bool exists = true;", "out of bounds"),
        ("rows of W past the last", "exists && k < left ?", "exists ?", "out of bounds|wrong numbers"),
        ("a part left out", "for (int p = 0; p < shape.parts; ++p) recurrent", "for (int p = 1; p < shape.parts; ++p) recurrent", "wrong numbers"),
        ("reset lets d_h through", "    if (cell.next_keeps)\n", "    if (cell.has_next)\n", "wrong numbers|nobody has written"),
        ("gates of a word swapped", "(odd ? 2 : 0);", "(odd ? 0 : 2);", "wrong numbers"),
        ("tensors of the first direction", "sequences.of[block_index_y()];", "sequences.of[0];", "wrong numbers|race|nobody has written"),
        ("both directions alike", "rows_in(all_rows, block_index_y());", "rows_in(all_rows, 0);", "wrong numbers"),
        ("second direction not launched", "static_cast<unsigned>(sequences.count)};", "1u};", "wrong numbers"),
    ),
    *_bugs(
        "lstm_cluster_backward_kernel", "lstm_mma.cuh",
        ("reset lets d_c through", "carry = keeps ? x.d_c * x.gates[1] : 0.0f;", "carry = x.d_c * x.gates[1];", "wrong numbers"),
        ("carry not added", "    if (has_next) x.d_c += carry;\n", "", "wrong numbers"),
        ("reset lets d_h0 through", "keeps ? d_z[k] : 0.0f", "d_z[k]", "wrong numbers"),
        ("d_c0 of empty rows left out", " && !(length == 0 && t == 0)) return;", ") return;", "wrong numbers"),
        ("c0 for every c_prev", "first ? static_cast<const T*>(args.c0)[at]", "true ? static_cast<const T*>(args.c0)[at]", "wrong numbers"),
        unit="lstm_cluster_backward.cu",
    ),
]  # fmt: skip

SELF_MUTATIONS = [
    Mutation(kernel, name, "selftest.cu", tuple(edits), message, kernel not in ("reduce_kernel", "peers_kernel"))
    for kernel, name, edits, message in [
        ("reduce_kernel", "sync_warp removed", [("    sync_warp();\n", "")], "race"),
        ("reduce_kernel", "add_release where acq_rel is needed", [("add_acq_rel(counter", "add_release(counter")], "race"),
        ("rotate_kernel", "sync_grid removed", [("  sync_grid();\n", "")], "race"),
        ("peers_kernel", "block leaves while peers read", [("  sync_cluster();  // nobody leaves", "  // nobody leaves")],
         "has returned"),
        ("pipe_kernel", "no room asked for",
         [("      if (round > 0) mbarrier_wait(&pipe.empty[slot], (round - 1) % 2);\n", "")], "race|more"),
        ("pipe_kernel", "plain store to a peer, then mbarrier_arrive",
         [("store_async(&pipe.row[slot][lane], bits, &pipe.full[slot], 1);",
           "*peer_shared(&pipe.row[slot][lane], 1) = bits;\n      mbarrier_arrive(&pipe.full[slot], 1);"),
          ("mbarrier_init(&pipe.full[i], 1)", "mbarrier_init(&pipe.full[i], 33)"),
          ("mbarrier_arrive_expect(&pipe.full[slot], 128)", "mbarrier_arrive_expect(&pipe.full[slot], 0)")], "race"),
        ("mailbox_kernel", "tag not checked",
         [("while ((message = load_relaxed(forth)).word[3] != t) pause();", "message = load_relaxed(forth);")], "stall"),
    ]
]  # fmt: skip

MUTATIONS = LSTM_MUTATIONS + [mutation for mutation, _ in DECODE_MUTATIONS] + SELF_MUTATIONS
