"""Of the tab that shows what somebody said of answers."""

WORDS = {
    "feedback.tab": ("Feedback", "反馈"),
    "feedback.none": (
        "Nothing yet. Give an answer a thumb, or say what it should have been; it is listed here.",
        "还没有反馈。给回答点赞或点踩，或写出正确的回答，都会列在这里。",
    ),
    "feedback.counts": (
        "Answers: {answers} ({up} up, {down} down, {corrected} corrected). Votes: {votes}.",
        "回答：{answers}（赞 {up}，踩 {down}，已更正 {corrected}）。投票：{votes}。",
    ),
    "feedback.command": (
        "Whoever runs this server makes training data of the corrections:",
        "服务器管理员可以把这些更正转成训练数据：",
    ),
    "feedback.answers": ("Answers", "回答"),
    "feedback.question": ("Question", "问题"),
    "feedback.answer": ("Answer", "回答"),
    "feedback.correction": ("Should have been", "正确的回答"),
    "feedback.up": ("Good answer", "回答得好"),
    "feedback.down": ("Bad answer", "回答不好"),
    "feedback.remove": ("Remove", "删除"),
    "feedback.votes": ("Votes between models", "模型对比投票"),
    "feedback.model": ("Model", "模型"),
    "feedback.other": ("Other model", "另一个模型"),
    "feedback.better": ("Better", "更好"),
    "feedback.worse": ("Worse", "更差"),
    "feedback.same": ("No difference", "没有差别"),
    "feedback.removed": ("Removed.", "已删除。"),
}
