"""Pages in, readings out, several at once.

- `ocr_engine`: `OcrEngine`, what programs use; `load_options`: how a checkpoint is loaded
- `results`: a page as it goes in, and what comes out of it
- `request`: a page that was handed in, and the handle that its caller holds
- `scheduler`: whose turn it is; the thread that computes
- `slot_pool`: the slots of one decoder; `model_runner`: the model at work on the pages in them
- `preprocess_pool`: threads that open and cut pages ahead of it
- `page_state`: a page between its picture and its reading; `text_accumulator`: its text so far
"""
