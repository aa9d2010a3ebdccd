"""Caffe's LSTM and the networks of the release in float64 numpy, straight from the equations of the paper.

Gates in the order i, f, o, g; cont multiplies h before W_hc, and f. Nothing of the package is used.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, cont, blobs, static=None):
    """x [T, N, D], cont [T, N], static [N, S] or None; blobs as a file has them -> h [T, N, H]."""
    w_xc, b_c, *w_static, w_hc = (np.asarray(b, np.float64) for b in blobs)
    assert len(w_static) == (static is not None)
    H = w_hc.shape[1]
    h = c = np.zeros((x.shape[1], H))
    out = []
    for x_t, cont_t in zip(x, cont[:, :, None], strict=True):
        a = x_t @ w_xc.T + b_c + (cont_t * h) @ w_hc.T
        if static is not None:
            a = a + static @ w_static[0].T
        i, f, o = (sigmoid(a[:, k * H : (k + 1) * H]) for k in range(3))
        g = np.tanh(a[:, 3 * H :])
        c = cont_t * f * c + i * g
        h = o * np.tanh(c)
        out.append(h)
    return np.stack(out)


def caption_logits(layers, words, cont, features):
    """Scores of the next word. layers {name: blobs}; words, cont [T, N]; features [N, S] -> [T, N, V]."""
    x = np.asarray(layers["embedding"][0], np.float64)[words]
    for name in ("lstm1", "lstm2"):
        if name in layers:
            x = lstm(x, cont, layers[name], features if len(layers[name]) == 4 else None)
    w, b = layers["predict"]
    return x @ w.T + b


def activity_logits(layers, fc6):
    """Class scores at every step. layers {name: blobs}; fc6 [T, N, D] -> [T, N, classes]."""
    cont = np.ones(fc6.shape[:2])
    cont[0] = 0
    h = lstm(fc6, cont, layers["lstm1"])
    w, b = layers["fc8-final"]
    return h @ w.T + b
