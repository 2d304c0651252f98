# SPDX-License-Identifier: Apache-2.0
"""Any exporter as a black box: a case directory goes in, a result directory comes out, and the readers judge.

``python -m spec_tests --exporter "/venv/bin/python binding.py"`` runs ``/venv/bin/python binding.py CASE RESULT`` for
each case, in the trainer's own environment. A case of several ranks starts one such process a rank, with the variables
of torchrun. The exporter ends with 0 when it has saved, with 3 when it cannot do this case (the last line that it
prints says why), and with anything else when it fails.

``CASE`` holds
    ``base/``               a tiny checkpoint of transformers, with a tokenizer;
    ``case.json``           what is trained: the kind, the settings of LoRA in PEFT's words, and for each module its
                            rank, alpha and the scale of its update;
    ``delta.safetensors``   the trained values, under the names of the base's modules and parameters;
    ``inputs.safetensors``  what the model is run on.

``RESULT`` is empty at first. The exporter writes
    ``export/``               the checkpoint;
    ``observed.safetensors``  optional: ``logits`` of its own model on the inputs. Where they are not the case's, the
                              binding has trained another model, and the exporter is not judged.

``spec_tests/subjects/put_in.py`` is the file to copy for the values, and the files beside it are bindings to start
from. The suite computes what the model must answer from the case alone.
"""
