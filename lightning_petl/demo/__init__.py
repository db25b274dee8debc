"""The quickstart's own data and backbone: scikit-learn's handwritten digits and a small timm ViT pretrained on them."""
