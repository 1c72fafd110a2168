"""Of the panel that looks inside an answer."""

WORDS = {
    "inside.nothing": ("Ask something, and the facts of its answer stand here.", "提问之后，这里会显示回答的详情。"),
    "inside.facts": ("This answer", "这个回答"),
    "inside.written": ("Written", "输出"),
    "inside.written_told": ("{tokens} tokens", "{tokens} 个词元"),
    "inside.written_rate": ("{tokens} tokens, {rate} a second", "{tokens} 个词元，每秒 {rate} 个"),
    "inside.first": ("First token", "首个词元"),
    "inside.first_told": ("after {seconds} s", "{seconds} 秒后"),
    "inside.context": ("Context", "上下文"),
    "inside.context_told": ("{used} of {most} tokens used, {left} left", "已用 {used} / {most} 个词元，剩余 {left} 个"),
    "inside.context_open": ("{used} tokens used", "已用 {used} 个词元"),
    "inside.known": ("Known before", "已有缓存"),
    "inside.known_told": ("{tokens} tokens", "{tokens} 个词元"),
    "inside.ended": ("Ended", "结束原因"),
    "inside.ended_stop": ("by itself", "自然结束"),
    "inside.ended_length": ("at the longest answer that was asked for", "达到所要求的长度上限"),
    "inside.ended_cancelled": ("it was stopped", "已停止"),
    "inside.sure": ("Confidence", "置信度"),
    "inside.sure_told": (
        "{share} %: so many of the answers that were about as likely were right ({rows} questions of “{task}”).",
        "{share}%：在“{task}”的 {rows} 个问题中，概率相近的回答有这一比例是正确的。",
    ),
    "inside.unsure": ("Not sure.", "不确定。"),
    "inside.likely_told": (
        "The model gave its own words a probability of {share} %. How often such answers are right was not measured.",
        "模型给这段回答的概率为 {share}%。这类回答的正确率尚未测量。",
    ),
    "inside.from": ("Where it came from", "图中的依据"),
    "inside.from_hint": (
        "Press a word, or the whole answer, to see the places in the picture that it came from.",
        "点击某个词或整个回答，查看它来自图片的哪些位置。",
    ),
    "inside.from_tint": (
        "Marked: words that were less likely (line), unlikely (thick line).",
        "划线的词：概率较低（细线）、很低（粗线）。",
    ),
    "inside.whole": ("Whole answer", "整个回答"),
    "inside.word": ("{word}: show where it came from", "{word}：显示它来自何处"),
    "inside.word_likely": (
        "{word}, probability {share} %: show where it came from",
        "{word}，概率 {share}%：显示它来自何处",
    ),
    "inside.drawing": ("Drawing the map …", "正在绘制…"),
    "inside.checking": ("Covering parts of the picture …", "正在遮挡图片各部分…"),
    "inside.map_of": ("Where “{words}” came from", "“{words}”的依据"),
    "inside.map_alt": (
        "Picture {number}. In colour: the places that “{words}” came from, strongest {place}. The rest is grey.",
        "图片 {number}。彩色处是“{words}”的依据，最强处在{place}，其余为灰色。",
    ),
    "inside.map_alt_none": (
        "Picture {number}, all grey: nothing in it spoke for “{words}”.",
        "图片 {number} 全为灰色：图中没有支持“{words}”的内容。",
    ),
    "inside.legend": (
        "In colour: what spoke for it. Within the line: at least half as much as the strongest place. Grey: little or "
        "nothing.",
        "彩色：支持这些词的位置。线内：强度至少为最强处的一半。灰色：支持很弱或没有。",
    ),
    "inside.method": ("Method: {method}.", "方法：{method}。"),
    "inside.method_integrated": (
        "integrated gradients through the connector (arXiv:1703.01365)",
        "经过连接器的积分梯度（arXiv:1703.01365）",
    ),
    "inside.method_occlusion": ("covering place after place (arXiv:1311.2901)", "逐处遮挡（arXiv:1311.2901）"),
    "inside.place_0": ("at the upper left", "左上"),
    "inside.place_1": ("at the top", "上方"),
    "inside.place_2": ("at the upper right", "右上"),
    "inside.place_3": ("on the left", "左侧"),
    "inside.place_4": ("in the middle", "中央"),
    "inside.place_5": ("on the right", "右侧"),
    "inside.place_6": ("at the lower left", "左下"),
    "inside.place_7": ("at the bottom", "下方"),
    "inside.place_8": ("at the lower right", "右下"),
    "inside.check": ("Check this map", "检验这张证据图"),
    "inside.check_good": ("The map holds.", "这张证据图可信。"),
    "inside.check_bad": ("Do not trust this map.", "不要相信这张证据图。"),
    "inside.check_told": (
        "Covering the {share} % of the picture that it shows makes these words {shown} times less likely; covering as "
        "much at random, tried {draws} times, at most {random} times.",
        "遮住它标出的 {share}% 画面，这些词的概率降到原来的 1/{shown}；"
        "随机遮住同样大的面积，试 {draws} 次，最多降到 1/{random}。",
    ),
    "inside.saw": ("What the model saw", "模型看到的画面"),
    "inside.saw_came": ("Picture {number} came with {came} pixels.", "图片 {number} 原为 {came} 像素。"),
    "inside.saw_seen": ("The model saw {seen} pixels.", "模型看到 {seen} 像素。"),
    "inside.saw_pieces": (
        "It was cut into {pieces} pieces of {size} pixels.",
        "图片切成 {pieces} 块，每块 {size} 像素。",
    ),
    "inside.saw_grid": (
        "It was seen whole and as {rows} × {columns} tiles, each of {size} pixels.",
        "模型看了整张图和 {rows} × {columns} 个切块，每块 {size} 像素。",
    ),
    "inside.saw_tokens": ("To the language model it is {tokens} tokens.", "对语言模型来说是 {tokens} 个词元。"),
    "inside.saw_unknown": (
        "How this model prepares its pictures is not known here.",
        "无法得知该模型如何处理图片。",
    ),
    "inside.saw_alt": ("Picture {number} as the model saw it", "模型看到的图片 {number}"),
    "inside.saw_piece_alt": ("Piece {piece} of picture {number}", "图片 {number} 的第 {piece} 块"),
    "inside.no_picture": (
        "There is no picture in this conversation, so the answer came from none.",
        "此对话中没有图片，回答不以图片为依据。",
    ),
    "inside.elsewhere": (
        "The model that answered is on another server, which cannot be looked into.",
        "回答的模型在另一台服务器上，无法查看其内部。",
    ),
    "inside.busy": (
        "Many are looking into their answers just now. Try again in a minute.",
        "现在查看的人很多，请稍后再试。",
    ),
}
