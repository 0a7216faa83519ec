"""Model families, one file each, and the layers that they are written from.

Legend of the shape suffixes, in names and in einsum strings alike:

    B batch            N query heads        F feed-forward features
    T query positions  K key/value heads    V vocabulary (padded)
    S key positions    H features per head  L layers
    D model features (the residual stream)
"""
