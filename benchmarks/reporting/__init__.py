# SPDX-License-Identifier: Apache-2.0
"""From the rows of a comparison to numbers, sentences and figures; `sparsekit.benchmarks.report` puts them together."""
