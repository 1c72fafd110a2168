"""Sentences of errors that visitors of the page may cause, as the server says them, and in Chinese."""

from __future__ import annotations

import re
from functools import cache

from serve.page.words import room_errors

# `{called}` is a picture or a file as `vlchat.images.label_of` calls it; what stands for the others is kept.
SENTENCES = {
    "Type a question, or add a picture.": "请输入问题，或添加图片。",
    "The text has {count} characters; at most {most} are taken.": "文字有 {count} 个字符，最多接受 {most} 个。",
    "A number is missing in the settings.": "设置中缺少一个数值。",
    "This conversation isn't here any more. Begin a new one.": "此对话已不存在。请开始新对话。",
    "This part of the conversation isn't here any more. Open the conversation again.": (
        "对话的这一部分已不存在。请重新打开对话。"
    ),
    "This picture isn't here any more. Add it again.": "这张图片已不存在。请重新添加。",
    "A picture did not arrive. Add it again.": "有一张图片没有收到。请重新添加。",
    "A picture in this conversation was not uploaded here. Add it again.": (
        "对话中有一张图片不是在此上传的。请重新添加。"
    ),
    "The conversation holds something that is neither text nor a picture. Start a new one.": (
        "对话中有既非文字也非图片的内容。请开始新对话。"
    ),
    "The conversation takes {count} tokens, its pictures included, but the model reads at most {most}. Start a new "
    "conversation, or send less text or fewer pictures.": (
        "此对话连同图片共有 {count} 个词元，而模型最多读取 {most} 个。请开始新对话，或减少文字或图片。"
    ),
    "A conversation has at most {most} pictures. Start a new one.": "一个对话最多有 {most} 张图片。请开始新对话。",
    "The pictures of this conversation have more than {most} million pixels together. Make them smaller, or start a "
    "new one.": "此对话的图片总像素超过 {most} 百万。请缩小图片，或开始新对话。",
    "All {count} places in the line are taken. Ask again in a minute.": "排队的 {count} 个位置已满。请一分钟后再试。",
    "The model that answered is on another server, which cannot be looked into.": (
        "回答的模型在另一台服务器上，无法查看其内部。"
    ),
    "Too many pictures are being opened. Ask again in a minute.": "正在打开的图片过多。请一分钟后再试。",
    "More than {rate} {what}. Ask again in {seconds} s.": "超过限额（{rate} {what}）。请 {seconds} 秒后再试。",
    "The server is stopping. Ask again in a minute.": "服务器正在停止。请一分钟后再试。",
    "The server's memory is full. Send fewer pictures or less text, or ask again in a minute.": (
        "服务器内存已满。请减少图片或文字，或一分钟后再试。"
    ),
    "The model failed at this answer. Ask again, or ask something else.": "模型回答失败。请重试，或换个问题。",
    "The model ended its answer before the first word. Try other words or another setting.": (
        "模型没有给出任何文字就结束了回答。请换一种说法或调整设置。"
    ),
    "The server's history can't be used now: {reason}. Whoever runs it can make room on its disk or give it another "
    "folder; until then, switch your history off to go on.": (
        "服务器的历史记录现在无法使用（{reason}）。管理员可以清理磁盘空间或更换文件夹；在此之前，请关闭历史记录后继续。"
    ),
    "{called} is empty (0 bytes). Save or upload it again.": "{called} 是空文件（0 字节）。请重新保存或上传。",
    "{called} is damaged or cut short: only {count} bytes. Save or upload it again.": (
        "{called} 已损坏或不完整，只有 {count} 字节。请重新保存或上传。"
    ),
    "{called} is damaged or cut short: its {format} data cannot be decoded. Save it again.": (
        "{called} 已损坏或不完整，其 {format} 数据无法解码。请重新保存。"
    ),
    "{called} is a {format} file; accepted are {formats}. Save it as PNG or JPEG.": (
        "{called} 是 {format} 文件，只接受 {formats}。请另存为 PNG 或 JPEG。"
    ),
    "{called} is not a picture in a known format; accepted are {formats}. Save it as PNG or JPEG.": (
        "{called} 不是已知格式的图片，只接受 {formats}。请另存为 PNG 或 JPEG。"
    ),
    "{called} is a moving picture; only stills are accepted. Save one frame as PNG.": (
        "{called} 是动态图片，只接受静态图片。请将其中一帧另存为 PNG。"
    ),
    "{called} is {width} x {height} pixels: there is nothing to see.": (
        "{called} 为 {width} x {height} 像素，没有内容。"
    ),
    "{called} is {width} x {height} pixels ({count} million); at most {most} million are accepted. Make it smaller.": (
        "{called} 为 {width} x {height} 像素（{count} 百万），最多接受 {most} 百万。请缩小图片。"
    ),
    "{called} is {width} x {height} pixels, a side ratio of {ratio}; at most {most} is accepted. Crop it.": (
        "{called} 为 {width} x {height} 像素，长宽比为 {ratio}，最多接受 {most}。请裁剪图片。"
    ),
    "{called} has {size} bytes; at most {most} are accepted. Make it smaller.": (
        "{called} 有 {size} 字节，最多接受 {most} 字节。请缩小图片。"
    ),
    "{called} is locked with a password. Save it without one.": "{called} 有密码保护。请去除密码后保存。",
    "{called} is damaged or has no pages: none can be drawn. Save it again.": (
        "{called} 已损坏或没有页面，无法显示。请重新保存。"
    ),
}
_CALLED = re.compile(r'The (?:picture|file|PDF)(?: "(.*)")?', re.DOTALL)


def in_language(sentence: str, language: str) -> str:
    """An error's sentence in a language of `serve.page.words.LANGUAGES`; as it is where there is no translation."""
    if language == "zh":
        for pattern, chinese in _patterns():
            if found := pattern.fullmatch(sentence):
                return chinese.format(**{name: _called(value) for name, value in found.groupdict().items()})
    return sentence


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(english)), re.DOTALL), chinese)
        for english, chinese in {**SENTENCES, **room_errors.SENTENCES}.items()
    ]


def _called(value: str) -> str:
    found = _CALLED.fullmatch(value)
    if found is None:
        return value
    return "该图片" if found[1] is None else f"“{found[1]}”"
