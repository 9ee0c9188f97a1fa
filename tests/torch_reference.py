"""Import this before `transformers` or `sentence_transformers` in a test that compares with PyTorch.

The CPU build of torch comes without torchvision's compiled operators; declaring the two names that torchvision
registers shapes for is enough for its pure-Python transforms, which the image and video processors use.
"""

import torch

torch.set_num_threads(1)
_TORCHVISION = torch.library.Library("torchvision", "DEF")
_TORCHVISION.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_TORCHVISION.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
