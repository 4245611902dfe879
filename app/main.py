"""`uvicorn app.main:app`"""

from api.main import create_guarded_app

app = create_guarded_app()
