"""The synthetic cohort: people with seven organs, from known causes, written as the NIfTI files of pretend hospitals.

It exists because a method that claims to learn disease from organs, under missingness and across scanners, can only be
checked where the truth is known. Nothing here is tuned to a model. The generative model, from cause to file:

1. *Factors* (`factors.py`). Nine numbers of unit variance: ageing (correlates 0.85 with age, which is uniform in 45
   to 82 years), adiposity, sex (+-1), and six disease processes: vascular, metabolic, fibrotic, inflammatory,
   degenerative, proliferative. Processes are partly caused by ageing, adiposity and sex, and partly their own.
2. *Traits* (`traits.py`). Each organ has 3 to 5 visible traits, `z = loadings . factors + own part`, unit variance.
   Each process shows in two or more organs. Own parts are anatomy that means nothing.
3. *Bodies* (`anatomy.py`, `shapes.py`). Traits move sizes, thicknesses, local shapes, lesions and grain of organ-like
   solids, by closed forms in millimetres; each organ is turned by 3 degrees and shifted by 1.2 % (SD). Adipose (ring)
   and heart (size, wall) carry strong signals, large and global; the others small, local or in the grain.
4. *Scans* (`scanner.py`). A site's scanner sets spacing (half are thick-sliced), axis order, gamma, gain, coil shading
   and noise; each scan has a gain and Rician noise of its own. So absolute brightness means nothing; contrast within
   a scan does.
5. *Labels* (`diseases.py`). 14 diseases are Bernoulli draws from a logistic of the factors; each of 13 categories is
   present when one of its diseases or its remainder (another logistic) is. `bayes_auc(label)` is what nobody can pass.
6. *Missing organs* (`missingness.py`). `logit P = alpha_o + beta * driver`: nothing (MCAR), age (MAR) or the latent
   severity in that organ (MNAR), calibrated to one marginal rate; every subject keeps an organ.

What a perfect model could know: R2 of the best linear reading of each factor, and of age, when every trait of the
organs is measured without error (`linear_ceiling`); voxels, pose and scanner only take away from it.

    organ     ageing adiposity  sex vascular metabolic fibrotic inflammatory degenerative proliferative  age
    brain       0.56      0.02 0.26     0.41      0.02     0.01         0.01         0.55          0.07 0.40
    heart       0.43      0.36 0.30     0.58      0.11     0.30         0.00         0.23          0.05 0.31
    adipose     0.38      0.85 0.34     0.08      0.51     0.02         0.24         0.06          0.04 0.27
    liver       0.04      0.28 0.09     0.04      0.52     0.43         0.01         0.01          0.25 0.03
    kidney      0.31      0.04 0.12     0.36      0.09     0.01         0.30         0.05          0.33 0.23
    spleen      0.02      0.03 0.02     0.01      0.01     0.22         0.45         0.00          0.16 0.02
    pancreas    0.36      0.21 0.01     0.08      0.47     0.31         0.01         0.15          0.04 0.26
    all         0.77      0.90 0.70     0.71      0.73     0.65         0.61         0.59          0.51 0.55

Mean AUC over the 13 categories: 0.793 for one who knows the factors, 0.747 for one who reads all traits perfectly,
0.694 for one who reads only adipose and heart perfectly.
"""
# SPDX-License-Identifier: Apache-2.0

from panfm.data.synthetic.diseases import CATEGORIES, DISEASES, LABELS, bayes_auc
from panfm.data.synthetic.factors import FACTORS, PROCESSES, Factors, draw_factors
from panfm.data.synthetic.scanner import Scanner, recommended_grids, scanner_of
from panfm.data.synthetic.traits import TRAITS, linear_ceiling
from panfm.data.synthetic.writer import SyntheticSite, write_synthetic_site

__all__ = [
    "CATEGORIES",
    "DISEASES",
    "FACTORS",
    "LABELS",
    "PROCESSES",
    "TRAITS",
    "Factors",
    "Scanner",
    "SyntheticSite",
    "bayes_auc",
    "draw_factors",
    "linear_ceiling",
    "recommended_grids",
    "scanner_of",
    "write_synthetic_site",
]
