# SPDX-License-Identifier: Apache-2.0
"""What the reference's checkpoints look like, as recorded: files of the add-on once, files of transformers by era."""
