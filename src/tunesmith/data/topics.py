"""The mathematics of the diversity report: texts to vectors, vectors to clusters, and how varied they are.

    words       1-2-grams; an ideogram is a word; whatever holds a digit is one and the same word
    vectors     TF-IDF on unit length (n rows, V terms), and 50 dimensions of it (truncated SVD), on unit length again
    clusters    k-means; of several numbers of clusters the one with the best silhouette
    Vendi       exp(entropy of the eigenvalues of K / n), K the cosines of n rows: 1 for n equal rows, n for n that share
                nothing (Friedman and Dieng 2023, arXiv 2210.02410)

Everything is learned from the first `FIT` rows, in the order given, with fixed seeds; the rest are placed by it. The caller
shuffles, and limits the threads: a sum over threads comes out differently each time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

FIT = 4_000
COMPARED = 1_000
"""Rows that are compared with each other, each with each: silhouettes and the Vendi Score."""
TERMS = 50_000
DIMENSIONS = 50
CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16)
ROWS_A_CLUSTER = 10
"""No more clusters are tried than leave so many rows to each, in the mean."""
NO_CLUSTERS = 0.05
"""Best silhouette below which rows are one cluster. One topic written in random words reaches 0.03, alpaca 0.08."""
FOREIGN = 0.3
"""Mean cosine between a large group and the rest, by that within the large group, below which the rest is something else.
Parts of one task have 0.4 to 0.7, rows of other tasks 0 to 0.2 (benchmarks/diversity.py)."""
LARGE = 0.9
"""Share of the rows that makes a large group."""
SMALLEST = 3
"""Rows of a cluster of the rows it was learned from: fewer are strange rows, and no kind."""
CUTS = 30
FLOOR = 0.05
"""What a term in every row still counts when terms are chosen: a template may have no other."""
DIGIT = "0"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTERS = rf"[^\W_{_UNSPACED}]+"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTERS}(?:['\u2019]{_LETTERS})?")
"""Thai, Lao, Burmese, Khmer, kana and ideograms stand for themselves: nothing shows where their words end."""
_MAIL = re.compile(r"\S+@\S+")
_DIGIT = re.compile(r"\d")


def words(text: str) -> list[str]:
    """Words in order, case aside. Mail addresses are left out, and words with a digit are `DIGIT`: a term names nobody."""
    return [DIGIT if _DIGIT.search(w) else w for w in _WORD.findall(_MAIL.sub(" ", text).casefold())]


def grams(text: str) -> list[str]:
    """1-grams and 2-grams; a text without words is the empty word."""
    found = words(text) or [""]
    return found + [f"{a} {b}" for a, b in zip(found, found[1:], strict=False)]


def vectors(texts: Sequence[str]) -> tuple[csr_matrix, list[str]]:
    """(TF-IDF of n texts on V terms, unit length; the terms): those that two rows or more of `FIT` hold.

    A row that shares no term with another is all zero.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    first = CountVectorizer(analyzer=grams, dtype=np.float32)
    learned = first.fit_transform(texts[:FIT])
    rows_with = np.bincount(learned.indices, minlength=learned.shape[1])
    kept = np.argsort(-rows_with, kind="stable")[:TERMS]  # columns are sorted by their terms, so ties are too
    kept = np.sort(kept[rows_with[kept] > 1] if (rows_with > 1).any() else kept)
    terms = first.get_feature_names_out()[kept].tolist()
    counts = learned[:, kept]
    weigh = TfidfTransformer(sublinear_tf=True).fit(counts)
    if len(texts) > FIT:
        from scipy.sparse import vstack

        rest = CountVectorizer(analyzer=grams, vocabulary=terms, dtype=np.float32).transform(texts[FIT:])
        counts = vstack([counts, rest], format="csr")
    return weigh.transform(counts), terms


def reduced(tfidf: csr_matrix) -> np.ndarray:
    """(n, at most 50) float32, rows of unit length or zero."""
    import numpy as np
    from sklearn.decomposition import TruncatedSVD

    size = min(DIMENSIONS, min(tfidf[:FIT].shape) - 1)
    if size < 1:
        return np.asarray(tfidf.todense(), np.float32)
    with np.errstate(all="ignore"):  # it divides by the variance, which equal rows do not have
        svd = TruncatedSVD(size, random_state=0).fit(tfidf[:FIT])
    found = svd.transform(tfidf).astype(np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def cosines(tfidf: csr_matrix) -> np.ndarray:
    """(m, m) of the first `COMPARED` rows; each row is like itself, also one that is all zero."""
    import numpy as np

    some = tfidf[:COMPARED]
    found = (some @ some.T).toarray().astype(np.float64)
    np.fill_diagonal(found, 1)
    return found


def vendi(similar: np.ndarray) -> float:
    """Effective number of different rows among m, 1 to m, by their (m, m) similarities."""
    import numpy as np

    shares = np.linalg.eigvalsh(similar / len(similar))
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def effective(sizes: Sequence[int]) -> float:
    """exp of the entropy of shares: n for n equal sizes, nearly 1 when one has nearly all."""
    import numpy as np

    shares = np.asarray(sizes, float) / sum(sizes)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def clusters(near: np.ndarray) -> tuple[np.ndarray, float | None]:
    """(cluster of each of n rows, silhouette of the best number of clusters); all 0 where no number has a silhouette."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    learn, judged = near[:FIT], near[:COMPARED]
    most = min(len(learn) // ROWS_A_CLUSTER, len(np.unique(learn.round(4), axis=0)))
    best, model = None, None
    for k in (k for k in CANDIDATES if k <= most):
        tried = KMeans(k, n_init=3, random_state=0).fit(learn)
        found = tried.labels_[:COMPARED]
        if len(np.unique(found)) > 1 and np.bincount(tried.labels_, minlength=k).min() >= SMALLEST:
            silhouette = float(silhouette_score(judged, found))
            if best is None or silhouette > best:
                best, model = silhouette, tried
    if best is None or best < NO_CLUSTERS:
        return np.zeros(len(near), np.int64), best
    return model.predict(near).astype(np.int64), best


def parts(similar: np.ndarray) -> tuple[np.ndarray, int, dict[int, float]] | None:
    """(cluster of each of m rows, the large one, how foreign each other is to it); None where no cut leaves a large one.

    Foreign: mean cosine with the large cluster, by the mean cosine within that; 1 is at home. k-means would rather cut the
    large cluster into pieces, so rows are joined by their mean similarity (average linkage), down to the finest cut that
    leaves a large one.
    """
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    rows = len(similar)
    tree = linkage(squareform(_apart(similar), checks=False), "average")
    cuts = [fcluster(tree, k, "maxclust") - 1 for k in range(2, CUTS + 1)]
    cuts = [found for found in cuts if LARGE * rows <= np.bincount(found).max() < rows]
    if not cuts:
        return None
    found = cuts[-1]
    large = int(np.bincount(found).argmax())
    inside = found == large
    count = int(inside.sum())
    within = (similar[np.ix_(inside, inside)].sum() - count) / (count * (count - 1))
    return found, large, {int(c): float(similar[np.ix_(inside, found == c)].mean() / max(within, 1e-9))
                          for c in np.unique(found[~inside])}


def outlying(tfidf: csr_matrix, similar: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Clusters as above if one large group has small ones beside it that are something else; None otherwise."""
    import numpy as np
    from sklearn.metrics import silhouette_score

    rows = len(similar)
    cut = parts(similar)
    if cut is None:
        return None
    found, large, foreign = cut
    for c, share in foreign.items():
        if share >= FOREIGN:
            found[found == c] = large
    if rows - int((found == large).sum()) < max(SMALLEST, rows / 100):
        return None
    known = tfidf[:rows]
    placed = [found] + [found[np.asarray((tfidf[at : at + rows] @ known.T).argmax(axis=1)).ravel()]
                        for at in range(rows, tfidf.shape[0], rows)]
    return np.concatenate(placed).astype(np.int64), float(silhouette_score(_apart(similar), found, metric="precomputed"))


def _apart(similar: np.ndarray) -> np.ndarray:
    import numpy as np

    found = np.clip(1 - (similar + similar.T) / 2, 0, None)
    np.fill_diagonal(found, 0)
    return found


def telling(tfidf: csr_matrix, terms: list[str], members: np.ndarray, wanted: int) -> list[str]:
    """Terms that set some rows apart, none of them a part of one before.

    The highest m log(m / mean of all) log(n / rows with it), m a term's mean weight in these rows: the last factor keeps "the"
    out. Where these rows are all there are, m and the last factor decide.
    """
    import numpy as np

    here = np.asarray(tfidf[members].mean(axis=0)).ravel()
    if len(members) < tfidf.shape[0]:
        overall = np.asarray(tfidf.mean(axis=0)).ravel()
        here = here * np.log(np.maximum(here, 1e-12) / np.maximum(overall, 1e-12))
    rows_with = np.bincount(tfidf.indices, minlength=tfidf.shape[1])
    here = here * (FLOOR + np.log(tfidf.shape[0] / np.maximum(rows_with, 1)))
    chosen: list[str] = []
    for at in np.argsort(-here, kind="stable"):
        parts = set(terms[at].split())
        if here[at] <= 0 or len(chosen) == wanted:
            break
        if parts and DIGIT not in parts and not any(parts & set(c.split()) for c in chosen):
            chosen.append(terms[at])
    return chosen


def nearest(tfidf: csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Cosine of each of these rows with the row of all that is most like it, itself aside."""
    import numpy as np

    found = (tfidf[rows] @ tfidf.T).toarray()
    found[np.arange(len(rows)), rows] = 0
    return found.max(axis=1)


def plane(near: np.ndarray, size: int) -> np.ndarray:
    """(n, 2) whole numbers from 0 to `size`: rows that are alike stand together (t-SNE, van der Maaten and Hinton 2008)."""
    import numpy as np
    from sklearn.manifold import TSNE

    begin = "pca" if near.shape[1] > 1 and near.std(axis=0).max() > 1e-6 else "random"  # equal rows have no axes
    model = TSNE(2, perplexity=min(30, (len(near) - 1) / 3), init=begin, max_iter=400, angle=0.8, random_state=0)
    found = model.fit_transform(near)
    low, high = found.min(axis=0), found.max(axis=0)
    return np.rint((found - low) / np.maximum(high - low, 1e-9) * size).astype(int)


def labels(points: np.ndarray, cluster: np.ndarray, size: int) -> dict[int, list[list[int]]]:
    """Up to 3 places on the map for the number of each cluster: where it is thick and the others are thin, far apart."""
    import numpy as np

    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    own = cluster[:, None] == cluster[None]
    thick = ((apart < size * 0.06) * np.where(own, 1, -1)).sum(axis=1)
    found: dict[int, list[list[int]]] = {}
    for c in np.unique(cluster).tolist():
        candidates = [int(i) for i in np.argsort(-thick, kind="stable") if cluster[i] == c]
        chosen = candidates[:1]
        for i in candidates:
            if len(chosen) < 3 and thick[i] >= 5 and apart[i, chosen].min() > size * 0.2:
                chosen.append(i)
        found[c] = points[chosen].tolist()
    return found
