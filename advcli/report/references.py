"""Whom to cite: the papers behind the parts of a method and of an evaluation, as BibTeX."""

from __future__ import annotations

from typing import Any

_MADRY = """@inproceedings{madry2018towards,
  title = {Towards Deep Learning Models Resistant to Adversarial Attacks},
  author = {Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras, Dimitris and Vladu, Adrian},
  booktitle = {International Conference on Learning Representations},
  year = {2018}
}"""
_CROCE = """@inproceedings{croce2020reliable,
  title = {Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks},
  author = {Croce, Francesco and Hein, Matthias},
  booktitle = {International Conference on Machine Learning},
  year = {2020}
}"""
_CARLINI = """@article{carlini2019evaluating,
  title = {On Evaluating Adversarial Robustness},
  author = {Carlini, Nicholas and Athalye, Anish and Papernot, Nicolas and Brendel, Wieland and Rauber, Jonas and Tsipras, Dimitris
            and Goodfellow, Ian and Madry, Aleksander and Kurakin, Alexey},
  journal = {arXiv preprint arXiv:1902.06705},
  year = {2019}
}"""
_ANCRA = """@article{zhou2023enhancing,
  title = {Enhancing Robust Representation in Adversarial Training: Alignment and Exclusion Criteria},
  author = {Zhou, Nuoyan and Wang, Nannan and Liu, Decheng and Zhou, Dawei and Gao, Xinbo},
  journal = {arXiv preprint arXiv:2310.03358},
  year = {2023}
}"""
_STAY_FOCUSED = """@inproceedings{chen2024stay,
  title = {Stay Focused is All You Need for Adversarial Robustness},
  author = {Chen, Bingzhi and Liu, Ruihan and Liu, Yishu and Fang, Xiaozhao and Pan, Jiahui and Lu, Guangming and Zhang, Zheng},
  booktitle = {ACM International Conference on Multimedia},
  doi = {10.1145/3664647.3681676},
  year = {2024}
}"""

_OF_PART = {
    "pgd-at": _MADRY,
    "trades": """@inproceedings{zhang2019theoretically,
  title = {Theoretically Principled Trade-off between Robustness and Accuracy},
  author = {Zhang, Hongyang and Yu, Yaodong and Jiao, Jiantao and Xing, Eric P. and El Ghaoui, Laurent and Jordan, Michael I.},
  booktitle = {International Conference on Machine Learning},
  year = {2019}
}""",
    "mart": """@inproceedings{wang2020improving,
  title = {Improving Adversarial Robustness Requires Revisiting Misclassified Examples},
  author = {Wang, Yisen and Zou, Difan and Yi, Jinfeng and Bailey, James and Ma, Xingjun and Gu, Quanquan},
  booktitle = {International Conference on Learning Representations},
  year = {2020}
}""",
    "arrest": """@inproceedings{suzuki2023adversarial,
  title = {Adversarial Finetuning with Latent Representation Constraint to Mitigate Accuracy-Robustness Tradeoff},
  author = {Suzuki, Satoshi and Yamaguchi, Shin'ya and Takeda, Shoichiro and Kanai, Sekitoshi and Makishima, Naoki and Ando, Atsushi
            and Masumura, Ryo},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year = {2023}
}""",
    "awp": """@inproceedings{wu2020adversarial,
  title = {Adversarial Weight Perturbation Helps Robust Generalization},
  author = {Wu, Dongxian and Xia, Shu-Tao and Wang, Yisen},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020}
}""",
    "attribution-span": """@inproceedings{yin2023again,
  title = {{AGAIN}: Adversarial Training with Attribution Span Enlargement and Hybrid Feature Fusion},
  author = {Yin, Shenglin and Yao, Kelu and Shi, Sheng and Du, Yangzhou and Xiao, Zhen},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2023}
}""",
    "channel-suppression": """@inproceedings{bai2021improving,
  title = {Improving Adversarial Robustness via Channel-wise Activation Suppressing},
  author = {Bai, Yang and Zeng, Yuyuan and Jiang, Yong and Xia, Shu-Tao and Ma, Xingjun and Wang, Yisen},
  booktitle = {International Conference on Learning Representations},
  year = {2021}
}""",
    "reverse-attention": _ANCRA,
    "negative-contrast": _ANCRA,
    "channel-prompt": _STAY_FOCUSED,
    "masked-view": _STAY_FOCUSED,
    "hypersphere-contrast": _STAY_FOCUSED,
}


def of_method(model: dict[str, Any]) -> list[str]:
    """What the parts of a model's header are from."""
    objective = model.get("objective") or {}
    parts = [objective, objective.get("wrapper") or {}, *objective.get("terms", [])]
    parts += (model.get("architecture") or {}).get("gates") or []
    found = [_OF_PART[part["name"]] for part in parts if part.get("name") in _OF_PART]
    return list(dict.fromkeys(found))


def of_suite(suite: str) -> list[str]:
    """What an evaluation is from: its attacks, and the checks for masked gradients."""
    return [_MADRY if suite in ("quick", "paper", "transfer") else _CROCE, _CARLINI]


def of_software(version: str) -> str:
    return f"""@software{{advcli,
  title = {{advcli: adversarial training and honest robustness evaluation of image classifiers}},
  version = {{{version}}}
}}"""
