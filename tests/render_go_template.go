// Renders Ollama's templates with Go's own text/template; see go_templates.py.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content, Thinking string }

func main() {
	var cases []struct {
		Template string
		Messages []message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	var written []string
	for _, one := range cases {
		var system []string
		var messages []*message
		for i := range one.Messages {
			if one.Messages[i].Role == "system" {
				system = append(system, one.Messages[i].Content)
			}
			messages = append(messages, &one.Messages[i])
		}
		values := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": messages, "Response": ""}
		var out bytes.Buffer
		made := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		if err := made.Execute(&out, values); err != nil {
			panic(err)
		}
		written = append(written, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(written)
}
