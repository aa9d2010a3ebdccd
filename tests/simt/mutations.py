"""Bugs planted in the kernels, to see that the tests find them."""
# ruff: noqa: E501  (pieces of source are kept on one line)

from simt import Mutation


def _cell(kernel, *bugs):
    return [
        Mutation(kernel, name, "lstm_cell.cu", ((old, new),), *message) for name, old, new, *message in bugs
    ]


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
        ("lengths not clamped above", "length < rows.T ? length : rows.T", "length"),
        ("lengths not clamped below", "length < 0 ? 0 : length < rows.T", "length < rows.T"),
        ("cont of another row", "rows.cont[t * rows.B + b] != 0", "rows.cont[t * rows.B] != 0"),
        ("padded rows not skipped", "  if (t >= length) {\n    put(*h, A(0));", "  if (t > length) {\n    put(*h, A(0));"),
        ("h of padded rows left out", "    put(*h, A(0));\n", ""),
        ("c of padded rows left out", "    put(*c, A(0));\n", ""),
        ("first step of reverse", "  const bool first = t == (rows.reverse ? length - 1 : 0);\n  A z[4]",
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
        ("first step of reverse", "  const bool first = t == (rows.reverse ? length - 1 : 0);\n  const bool keeps",
         "  const bool first = t == (rows.reverse ? rows.T - 1 : 0);\n  const bool keeps"),
        ("carry from the padding", "return rows.reverse ? t > 0 : t + 1 < length;", "return rows.reverse ? t > 0 : t + 1 < rows.T;"),
        ("reset lets d_h through", "if (cell.d_h != nullptr && keeps_state(rows, later(rows, t), b))", "if (cell.d_h != nullptr)"),
        ("reset of this step for that of the later", "if (cell.d_h != nullptr && keeps_state(rows, later(rows, t), b))",
         "if (cell.d_h != nullptr && keeps)"),
        ("reset lets d_c through", "const A d_c_prev = keeps ? d_c * f : A(0);", "const A d_c_prev = d_c * f;"),
        ("reset lets d_h0 through", "put(d_first[k * H], keeps ? d_z[k] : A(0));", "put(d_first[k * H], d_z[k]);"),
        ("c_prev of the wrong side", "(rows.reverse ? 1 : -1) * rows.B * H", "(rows.reverse ? -1 : 1) * rows.B * H"),
        ("c_prev of a reset", "  if (keeps)\n    c_prev =", "  c_prev ="),
        ("carry not added", "    d_c += static_cast<const A*>(cell.carry)[at];\n", ""),
        ("d_gates of f left out", "    d_f += widen(d_gates[H]);\n", ""),
        ("tanh' for sigmoid'", "d_f * f * (A(1) - f)", "d_f * (A(1) - f * f)"),
    ),
    *_cell(
        "lstm_projection_backward_kernel",
        ("bounds check removed", "  if (j >= P) return;\n", "", _BOUNDS),
        ("padded rows not zeroed", "  if (t < length) {\n    sum", "  {\n    sum"),
        ("reset lets it through", "if (has_later(rows, t, length) && keeps_state(rows, later(rows, t), b)) sum",
         "if (has_later(rows, t, length)) sum"),
        ("recurrent left out", " sum += recurrent[at];", ";"),
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

MUTATIONS = LSTM_MUTATIONS + SELF_MUTATIONS
