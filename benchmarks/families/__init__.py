# SPDX-License-Identifier: Apache-2.0
"""Methods of a comparison, family by family."""
