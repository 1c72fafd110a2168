"""What goes wrong in the training room, in Chinese: the server's sentences, and the data doctor's kinds of faults."""

from __future__ import annotations

SENTENCES = {
    "Nothing was uploaded: add a data file and its pictures, or a zip of both.": (
        "没有上传任何文件：请添加数据文件及其图片，或两者的 zip。"
    ),
    "The upload could not be kept: the server may not write to its folder.": (
        "上传的文件无法保存：服务器没有写入其文件夹的权限。"
    ),
    "The upload could not be kept: {reason}.": "上传的文件无法保存：{reason}。",
    "The upload holds more than {most} files. Take less at once.": "上传的文件超过 {most} 个。请分次上传。",
    "The upload holds {name} twice. Where folders tell such pictures apart, zip them: a zip keeps its folders.": (
        "上传的文件中有两个 {name}。若它们本在不同文件夹中，请打包为 zip，以保留文件夹。"
    ),
    "The upload holds more than {most} MiB, unpacked.": "上传的文件解压后超过 {most} MiB。",
    "{zip} is damaged, or no zip that can be read here. Zip it again.": "{zip} 已损坏或无法读取。请重新打包。",
    "{zip} holds more than {most} files. Take less at once.": "{zip} 中的文件超过 {most} 个。请分次上传。",
    "{zip} is refused: its member {member} leads out of the zip.": "{zip} 被拒绝：其中的 {member} 指向 zip 之外。",
    "{zip} is refused: its member {member} is a link, or no plain file.": (
        "{zip} 被拒绝：其中的 {member} 是链接，或不是普通文件。"
    ),
    "{zip} is refused: its member {member} has a password.": "{zip} 被拒绝：其中的 {member} 有密码保护。",
    "There is no data file: add one that ends in {endings}. There is {others}.": (
        "没有数据文件：请添加扩展名为 {endings} 的文件。已有：{others}。"
    ),
    "There is no data file: add one that ends in {endings}.": "没有数据文件：请添加扩展名为 {endings} 的文件。",
    "There are {count} data files, {names}: give the one to train on.": (
        "有 {count} 个数据文件（{names}）：请只提供用于训练的那一个。"
    ),
    "Choose what is to be trained.": "请选择训练哪些部分。",
    "Steps and rows kept aside are whole numbers from 1.": "步数和留出的行数须为不小于 1 的整数。",
    "A run's name is at most 60 letters from a to z, digits, - and _, and begins with a letter or digit.": (
        "名称最多 60 个字符，只能含英文字母、数字、- 和 _，并以字母或数字开头。"
    ),
    'There is a run "{name}" already, and nothing is overwritten: name it otherwise.': (
        "已有名为“{name}”的训练，且不会被覆盖：请换一个名称。"
    ),
    'There is no run "{name}".': "没有名为“{name}”的训练。",
    'There is nothing to go on with in "{name}".': "“{name}”没有可以继续的内容。",
    '"{name}" is not under way.': "“{name}”不在训练中。",
    '"{name}" was begun in a terminal: stop it there, with Ctrl-C.': (
        "“{name}”是在终端中启动的：请在那里按 Ctrl-C 停止。"
    ),
    '"{name}" is under way, and one run trains at a time: wait for it, or stop it.': (
        "“{name}”正在训练，同一时间只能训练一个：请等待它完成，或将其停止。"
    ),
    '"{name}" is a model of this server already. Choose another name.': (
        "此服务器已有名为“{name}”的模型。请换一个名称。"
    ),
    "The server is stopping.": "服务器正在停止。",
    "Another check or plan is being made. Ask again when it is done.": "正在进行另一次检查或估算。请在其完成后重试。",
}

# vlchat.data.faults.KINDS: what is wrong with a row
KINDS = {
    "not_json": "不是有效的 JSON",
    "bad_encoding": "不是 UTF-8 编码",
    "not_an_object": "不是带字段名的对象",
    "unknown_format": "字段不属于任何已知格式",
    "ambiguous_row": "字段可作多种解读",
    "missing_field": "缺少该格式所需的字段",
    "wrong_type": "字段值的类型不对",
    "empty_cell": "不是数值（NaN 或无穷大），多由空单元格造成",
    "unknown_role": "发言者既非用户、助手，也非系统",
    "duplicate_id": "编号与前面的行重复",
    "unusable_row": "此行无法使用",
    "too_many_tags": "<image> 标记多于图片",
    "too_few_tags": "<image> 标记少于图片",
    "picture_in_answer": "图片不在用户的发言中",
    "picture_address": "图片以网址给出",
    "bad_data_url": "data: 网址无法解码",
    "path_leads_up": "路径中含有 ..",
    "path_absolute": "绝对路径在图片文件夹之外",
    "path_link_out": "链接指向图片文件夹之外",
    "missing_file": "文件不存在",
    "unreadable_file": "文件无法打开，或是文件夹",
    "empty_file": "空文件（0 字节）",
    "unsupported_file": "不支持的文件类型",
    "damaged_file": "图片无法解码",
    "moving_picture": "应为静态图片，却是动态图片",
    "too_many_pixels": "像素过多",
    "too_many_bytes": "文件过大",
    "side_ratio": "图片过于狭长，或没有面积",
    "no_answer": "没有助手的发言，无可学习",
    "empty_answer": "回答为空",
    "invisible_answer": "回答只含不可见字符",
    "no_question": "有回答而没有用户的发言",
    "no_supervision": "对话模板没有写入任何回答，无可学习",
    "template_refuses": "模型的对话模板或处理器拒绝此对话",
    "too_long": "词元数超过上限",
    "duplicate_row": "图片和对话与前面的行相同",
    "punctuation_answer": "回答只有标点",
    "placeholder_answer": "回答是空单元格留下的占位文字",
    "control_token": "文字中有控制标记或 <image>，按普通文字处理",
    "broken_text": "错误编码留下的乱码",
    "tiny_picture": "图片只有几个像素",
    "unanswered": "最后一个问题没有回答",
    "left_out": "词元数超过上限，按设置略去（too_long: drop）",
    "shortened": "按设置略去一部分以符合上限（too_long: shorten）",
}
