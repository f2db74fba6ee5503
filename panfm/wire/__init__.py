"""How tensors travel between the coordinator and a site: fewer bits a number, in parcels of bounded size, nothing pickled.

`encoding` turns fp32 tensors into raw ones (fp32, bf16, or int8 with scales) and back; `feedback` keeps at the site what
rounding took away and adds it to the next delta; `parcels` packs raw tensors into digest-checked bodies of at most 64 MB. What
carries the parcels (Flower's messages, a disk) is the business of others.
"""
# SPDX-License-Identifier: Apache-2.0
