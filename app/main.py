"""`uvicorn app.main:app`"""

from api.main import create_app

app = create_app()
