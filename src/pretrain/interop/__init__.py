"""Weights of other libraries: Hugging Face's, in and out.

Use: `from pretrain.interop import hf`, then `hf.load(directory)` and `hf.save(model, directory)`.

To add a family, write `interop/<family>.py` with one `Family` (interop/family.py), name its module in
the table `FAMILIES` of interop/hf.py, and write `tests/test_hf_<family>.py` with the harness of
tests/hf_parity.py. A `Family` is two tables:

- `tensors(node)`: rows `Tensor(ours, theirs, "their axes -> our axes", part)`, see interop/mapping.py.
  `ours` is the name of a parameter, as `describe` prints it; of a block only what follows
  "stack/blocks/", and `theirs` then has "{l}" for the layer. Blocks of several kinds by turns need
  nothing more. Axes are letters of the house's legend, merged ones in brackets, and sizes follow from
  our shape: "(N H) D -> D N H". A part of a fused tensor is the axis `c` with `Part(at, of, count)`:
  rows [heads, 3, head_dim] are "(N c H) D -> D N H"; three matrices one after another "(c N H) D -> D N H".
- `fields`: rows `Field` (a key is a field of the node), `Fixed` (a key with the only value that the
  node computes), `Implied` (a field that has no key), `Choice` (names for values), `Nested` (an object
  with rows of its own), `RotaryField` (interop/rope.py), or any class with `keys`, `read` and `write`.
  Defaults are those of Hugging Face's config class, because a key may be missing. Keys that change no
  logit (dropout) are named in `irrelevant`; any other key that no row speaks for is refused.

Both tables are read both ways: nothing else has to be written for export.
"""
