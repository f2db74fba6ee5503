"""What a site and a coordinator hand each other before a study: the site's card, the coordinator's kit, and their certificates.

Pure: everything here takes bytes and moments and gives bytes back. Which file they come from, and who may read it, is said by
the two sides: `panfm.site.joining` and `panfm.coordinator`.
"""
# SPDX-License-Identifier: Apache-2.0
