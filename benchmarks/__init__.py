# SPDX-License-Identifier: Apache-2.0
"""Networks, data, training engine, experiments and kernel benchmarks."""
